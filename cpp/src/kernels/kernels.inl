// The one kernel source.  A .cpp per instruction set names itself and includes this; the flags that
// CMake compiles it with do the rest.
//
// The rules that make every instruction set give the same bits, and keep them apart:
//   * A reduction has kLanes accumulators, whatever the vector width, and joins them in a fixed
//     order.  Elementwise kernels need no lanes: a float operation is the same in every width.
//   * -ffp-contract=off, as an FMA rounds once where mul and add round twice; no -ffast-math, as it
//     assumes away the -inf and NaN that logits hold.
//   * Only the table getter has external linkage, and nothing from std:: is called: of an inline
//     function, the linker may keep the copy compiled here, for AVX, and use it everywhere.
#include <cstddef>
#include <cstdint>

#include "logitfuse/kernels.hpp"

#if !defined(LOGITFUSE_KERNELS_ISA) || !defined(LOGITFUSE_KERNELS_GETTER)
#error "define LOGITFUSE_KERNELS_ISA (the name) and LOGITFUSE_KERNELS_GETTER (the function)"
#endif

// Helpers must melt into their loops: a call that stays keeps the loop scalar.
#if defined(__GNUC__)
#define LOGITFUSE_INLINE [[gnu::always_inline]] inline
#else
#define LOGITFUSE_INLINE inline
#endif

namespace logitfuse::detail {
namespace {

constexpr std::size_t kLanes = 16;  // one AVX-512 register, or two AVX2, or four SSE2/NEON

LOGITFUSE_INLINE constexpr std::uint32_t bits_of(float x) {
  return __builtin_bit_cast(std::uint32_t, x);
}
LOGITFUSE_INLINE constexpr float float_of(std::uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

constexpr float kInf = float_of(0x7f800000);
constexpr float kNan = float_of(0x7fc00000);

/// The larger one; `best` when `x` is NaN (in this form it is one instruction on x86).
LOGITFUSE_INLINE float max_number(float x, float best) { return x > best ? x : best; }

// Cody and Waite's split of ln 2: the high part has 9 bits, so that n * kLn2Hi is exact.
constexpr float kLn2Hi = 0x1.63p-1f;
constexpr float kLn2Lo = -0x1.bd0106p-13f;

// The least argument whose exp is a normal float32: -126 ln 2, rounded up.
constexpr float kExpMin = -0x1.5d589ep+6f;

/// exp(x) for x in (least, 0], 0 below, NaN for NaN; least >= kExpMin.
///
/// exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln(2) / 2.  The clamp keeps the product
/// at the end normal: a subnormal one is slow even where it is discarded.
LOGITFUSE_INLINE float exp_nonpositive(float x, float least) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the significand; the
  // 127 is the exponent bias of the 2^n that these bits become.
  constexpr float kRound = 0x1.8p23f + 127.0f;
  const float bounded = max_number(least, x);
  const float biased = bounded * 0x1.715476p+0f + kRound;  // 1 / ln 2
  const float n = biased - kRound;
  const float power = float_of(bits_of(biased) << 23);
  const float r = (bounded - n * kLn2Hi) - n * kLn2Lo;
  // exp(r) = 1 + r + r^2 q(r); q is minimax for the relative error, 2^-28 as rounded here.
  float q = 0x1.6a4002p-10f;
  q = q * r + 0x1.1239ecp-7f;
  q = q * r + 0x1.5558bep-5f;
  q = q * r + 0x1.555492p-3f;
  q = q * r + 0x1.fffffcp-2f;
  const float y = (r + (r * r) * q) + 1.0f;
  return bounded == least ? 0.0f : y * power;
}

/// log(x) for x > 0, -inf for 0, NaN for a negative x or NaN.
///
/// log(x) = e ln 2 + log(1 + f) with 1 + f in [2/3, 4/3).
LOGITFUSE_INLINE float log_nonnegative(float x) {
  constexpr std::uint32_t kTwoThirds = 0x3f2aaaab;
  constexpr std::uint32_t kMinNormal = 0x00800000;
  // The bits of a subnormal, read as an integer, are x * 2^149: exact, and no slow float operation.
  // (A mask where `?:` would do: GCC splits the path and computes all that follows twice.)
  const std::uint32_t given = bits_of(x);
  const std::uint32_t scaled = bits_of(static_cast<float>(static_cast<std::int32_t>(given)));
  const std::uint32_t subnormal =
      static_cast<std::uint32_t>(static_cast<std::int32_t>(given - kMinNormal) >> 31);
  const std::uint32_t bits = (scaled & subnormal) | (given & ~subnormal);
  const std::uint32_t exponent =
      static_cast<std::uint32_t>(static_cast<std::int32_t>(bits - kTwoThirds) >> 23);
  const float f = float_of(bits - (exponent << 23)) - 1.0f;
  const float e = static_cast<float>(static_cast<std::int32_t>(exponent - (149 & subnormal)));
  // log(1 + f) = f + f^2 q(f); q is minimax for the relative error, 2^-27 as rounded here.
  float q = -0x1.07c882p-3f;
  q = q * f + 0x1.1e678cp-3f;
  q = q * f - 0x1.f332fcp-4f;
  q = q * f + 0x1.1ed662p-3f;
  q = q * f - 0x1.559c44p-3f;
  q = q * f + 0x1.99d044p-3f;
  q = q * f - 0x1.fffefcp-3f;
  q = q * f + 0x1.555506p-2f;
  q = q * f - 0.5f;
  const float y = (f + ((f * f) * q + e * kLn2Lo)) + e * kLn2Hi;
  // Added, not selected: an `and` and an add each, cheaper than a blend.
  const float result = y + (x == 0.0f ? -kInf : 0.0f) + (x < 0.0f ? kNan : 0.0f);
  return x < kInf ? result : x;  // +inf and NaN
}

/// The max of kBlock elements.
LOGITFUSE_INLINE float max_of_block(const float* x) {
  float best[kLanes];
#pragma omp simd
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    float most = -kInf;
    for (std::size_t k = 0; k < kBlock; k += kLanes) most = max_number(x[k + lane], most);
    best[lane] = most;
  }
  for (std::size_t width = kLanes / 2; width > 0; width /= 2) {
#pragma omp simd
    for (std::size_t lane = 0; lane < width; ++lane) {
      best[lane] = max_number(best[lane + width], best[lane]);
    }
  }
  return best[0];
}

float block_max(const float* x, std::size_t n, float* out) {
  static_assert(kBlock % kLanes == 0);
  float best = -kInf;
  std::size_t k = 0;
  for (; k + kBlock <= n; k += kBlock) {
    *out = max_of_block(x + k);
    best = max_number(*out++, best);
  }
  if (k < n) {
    float last[kBlock];
    for (std::size_t i = 0; i < kBlock; ++i) last[i] = k + i < n ? x[k + i] : -kInf;
    *out = max_of_block(last);
    best = max_number(*out, best);
  }
  return best;
}

std::size_t at_least(const float* x, std::size_t n, float threshold, std::int32_t* out) {
  std::size_t count = 0;
  const auto collect = [&](std::size_t begin, std::size_t end) {
    for (std::size_t k = begin; k < end; ++k) {  // no branch: nobody could predict it
      out[count] = static_cast<std::int32_t>(k);
      count += x[k] >= threshold ? 1 : 0;
    }
  };
  std::size_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    std::int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (std::size_t lane = 0; lane < kLanes; ++lane) any |= x[k + lane] >= threshold ? 1 : 0;
    if (any != 0) collect(k, k + kLanes);
  }
  collect(k, n);
  return count;
}

// A chunk is summed in float32, the chunks in float64.  Four rows are few enough to prove the bound
// (8.1e-8 of exp, 2^-24 of each of two additions), many enough to make the conversion cheap.
constexpr std::size_t kChunk = 4 * kLanes;

/// sum[lane] += the exp of that lane in each row of a chunk.
LOGITFUSE_INLINE void add_exp(const float* x, float shift, float least, double* sum) {
  float part[kLanes];  // its own loop: clang sizes vectors by the widest type it sees
#pragma omp simd
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const float a = exp_nonpositive(x[lane] - shift, least);
    const float b = exp_nonpositive(x[lane + kLanes] - shift, least);
    const float c = exp_nonpositive(x[lane + 2 * kLanes] - shift, least);
    const float d = exp_nonpositive(x[lane + 3 * kLanes] - shift, least);
    part[lane] = (a + b) + (c + d);
  }
#pragma omp simd
  for (std::size_t lane = 0; lane < kLanes; ++lane) sum[lane] += static_cast<double>(part[lane]);
}

double sum_exp(const float* x, std::size_t n, float shift) {
  // Volatile: GCC would fold the constant through exp_nonpositive, and blend four values, not one.
  const volatile float exp_min = kExpMin;
  const float least = exp_min;
  double sum[kLanes] = {};
  std::size_t k = 0;
  for (; k + kChunk <= n; k += kChunk) add_exp(x + k, shift, least, sum);
  if (k < n) {
    float last[kChunk];
    for (std::size_t i = 0; i < kChunk; ++i) last[i] = k + i < n ? x[k + i] : -kInf;
    add_exp(last, shift, least, sum);
  }
  for (std::size_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::size_t lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  }
  return sum[0];
}

void exp_shifted(const float* x, std::size_t n, float shift, float scale, float* out) {
  // Up to `least` the product would be subnormal.  That kExpMin is rounded up, by 4.5e-6, makes up
  // for the roundings here.
  const float least = max_number(kExpMin - log_nonnegative(scale), kExpMin);
#pragma omp simd
  for (std::size_t k = 0; k < n; ++k) out[k] = scale * exp_nonpositive(x[k] - shift, least);
}

void log(const float* x, std::size_t n, float* out) {
#pragma omp simd
  for (std::size_t k = 0; k < n; ++k) out[k] = log_nonnegative(x[k]);
}

void axpy(float a, const float* x, std::size_t n, float* acc) {
#pragma omp simd
  for (std::size_t k = 0; k < n; ++k) acc[k] += a * x[k];
}

constexpr Kernels kTable{LOGITFUSE_KERNELS_ISA, block_max, at_least, sum_exp,
                         exp_shifted,           log,       axpy};

}  // namespace

const Kernels& LOGITFUSE_KERNELS_GETTER() { return kTable; }

}  // namespace logitfuse::detail
