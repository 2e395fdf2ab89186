#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "logitfuse/kernels.hpp"

#ifdef LOGITFUSE_X86_64
#include <cpuid.h>
#endif

namespace logitfuse {

namespace detail {
// One per translation unit that includes kernels.inl.
const Kernels& baseline_kernels();
const Kernels& x86_64_v3_kernels();
const Kernels& x86_64_v4_kernels();
}  // namespace detail

namespace {

#ifdef LOGITFUSE_X86_64
// A -march level lets the compiler use all of its features, so all are asked for, also the ones no
// kernel needs: hypervisors mask them one by one.

bool runs_v3() {
  __builtin_cpu_init();
  // The builtin also knows whether the OS saves the wide registers, but clang 14 rejects three of
  // the names: f16c, movbe and lzcnt.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c_movbe = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0 &&
                          (ecx & bit_MOVBE) != 0;
  const bool lzcnt = __get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_LZCNT) != 0;
  return f16c_movbe && lzcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
}

bool runs_v4() {
  return runs_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

/// The tables that this CPU can run, slowest first.
const std::vector<const Kernels*>& runnable() {
  static const std::vector<const Kernels*> tables = [] {
    std::vector<const Kernels*> found{&detail::baseline_kernels()};
#ifdef LOGITFUSE_X86_64
    if (runs_v3()) found.push_back(&detail::x86_64_v3_kernels());
    if (runs_v4()) found.push_back(&detail::x86_64_v4_kernels());
#endif
    return found;
  }();
  return tables;
}

/// The named table; `source` says in the error where the name came from.
const Kernels& find(std::string_view isa, std::string_view source) {
  std::string names;
  for (const Kernels* table : runnable()) {
    if (isa == table->isa) return *table;
    names.append(names.empty() ? "" : ", ").append(table->isa);
  }
  throw std::invalid_argument(std::string(source) + " '" + std::string(isa) +
                              "' is unknown or not available here; available: " + names);
}

const Kernels& first_choice() {
  const char* name = std::getenv("LOGITFUSE_ISA");
  const bool named = name != nullptr && *name != '\0';
  return named ? find(name, "LOGITFUSE_ISA") : *runnable().back();
}

// Null until first use.  Relaxed order is enough: the tables are constants.
std::atomic<const Kernels*> active{nullptr};

}  // namespace

std::vector<std::string_view> available_isas() {
  std::vector<std::string_view> names;
  for (const Kernels* table : runnable()) names.emplace_back(table->isa);
  return names;
}

const Kernels& kernels() {
  const Kernels* table = active.load(std::memory_order_relaxed);
  if (table == nullptr) {
    const Kernels* choice = &first_choice();
    // On failure another thread was first, maybe with set_isa, and `table` becomes its choice.
    if (active.compare_exchange_strong(table, choice, std::memory_order_relaxed)) table = choice;
  }
  return *table;
}

const Kernels& kernels(std::string_view isa) { return find(isa, "instruction set"); }

void set_isa(std::string_view isa) { active.store(&kernels(isa), std::memory_order_relaxed); }

}  // namespace logitfuse
