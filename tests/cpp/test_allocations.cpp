#include <doctest/doctest.h>

#include <cstdlib>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#include "logitfuse/pool.hpp"
#include "logitfuse/prefix_mass.hpp"
#include "logitfuse/sampling.hpp"
#include "support.hpp"

using logitfuse::Fused;
using logitfuse::kNone;
using logitfuse::Pool;
using logitfuse::PoolKind;
using support::align;
using support::kPoolKinds;
using support::Row;

using Ids = std::vector<std::int32_t>;

namespace {

std::size_t allocations = 0;

}  // namespace

// Every allocation of this program passes here and is counted.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size == 0 ? 1 : size);
}
void* operator new(std::size_t size) {
  if (void* memory = operator new(size, std::nothrow)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

TEST_CASE("after the first steps nothing is allocated") {
  std::mt19937 random(3);
  std::vector<support::SharedVocab> vocabs{support::random_vocab(random, 1000),
                                           support::random_vocab(random, 3000)};
  std::vector<std::vector<const float*>> steps;
  std::vector<Row> rows;
  rows.reserve(10);
  for (int step = 0; step < 5; ++step) {
    std::vector<const float*>& pointers = steps.emplace_back();
    for (const auto& vocab : vocabs) {
      pointers.push_back(rows.emplace_back(support::random_row(random, *vocab)).data());
    }
  }
  const auto alignment = align(vocabs);
  const std::vector<double> weights{1, 2};
  const Ids forced{0, 5, 9};
  Row dense(static_cast<std::size_t>(alignment->size()));
  std::vector<logitfuse::PoolOptions> every;
  for (const PoolKind kind : kPoolKinds) every.push_back({kind});
  every.push_back(every.front());
  every.back().union_top = 10;
  every.push_back(every.front());
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(vocabs[1]->size()) + 1);
  std::iota(offsets.begin(), offsets.end(), 0);
  const std::vector<std::int32_t> targets(offsets.size() - 1, 3);
  const std::vector<float> shares(targets.size(), 0.5F);
  for (std::size_t i = 0; i < every.size(); ++i) {
    CAPTURE(i);
    Pool pool(alignment, every[i]);
    if (i + 1 == every.size()) {
      pool.project(1, offsets, targets, shares);
      pool.restrict_to(0);
    }
    logitfuse::Sampler sampler({}, {});
    const auto run = [&] {
      for (const auto& step : steps) {
        std::int32_t symbol = kNone;
        pool.read(step, weights);
        pool.decide(symbol);
        (void)pool.certain_without(0.1);
        pool.reweigh(weights);
        (void)pool.draw(0.7);
        const Fused& fused = pool.candidates(64, forced);
        (void)sampler.draw(fused);
        symbol = fused.symbols[0];
        (void)pool.score(symbol);
        pool.dense(dense);
        (void)pool.whole(20, forced);
        (void)logitfuse::boundary_probability(*vocabs[0], step[0], 0);
      }
    };
    const std::size_t at_first = allocations;
    run();
    const std::size_t then = allocations;
    run();
    CHECK(then > at_first);
    CHECK(allocations == then);
  }
}
