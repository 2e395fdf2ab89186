// Vector primitives over float32 arrays, one table per instruction set.
//
// Every table computes the same bits: 16 fixed lanes, no contraction, no fast-math.  The numbers
// in the contracts below are the ones tests/cpp/test_kernels.cpp checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace logitfuse {

/// Elements per block of `Kernels::block_max`: small enough that the blocks which hold the best
/// candidates are a small part of a row, large enough that the block maxima are cheap to rank.
inline constexpr std::size_t kBlock = 128;

/// exp and log are within these many units in the last place of the float64 result (`exp_shifted`
/// with scale 1; another scale adds the rounding of one product).
inline constexpr double kExpMaxUlp = 1.0;
inline constexpr double kLogMaxUlp = 1.0;
/// Relative error of `sum_exp` against the float64 sum of the terms it counts, for n <= 2^20
/// (inputs rounded as `x - shift`).
inline constexpr double kSumExpMaxRelative = 2e-7;

struct Kernels {
  const char* isa;

  /// out[b] = max of x[b*kBlock .. (b+1)*kBlock), the last block may be short; returns the max of
  /// all.  NaN is skipped (it shows up in `sum_exp`); an empty or all-NaN range gives -inf.
  /// out: [ceil(n / kBlock)].
  float (*block_max)(const float* x, std::size_t n, float* out);

  /// Writes the k with x[k] >= threshold, ascending, and returns how many there are; quick where
  /// they are few.  NaN is none.  out: [n].
  std::size_t (*at_least)(const float* x, std::size_t n, float threshold, std::int32_t* out);

  /// Sum of exp(x[k] - shift).  Valid: shift >= max(x), finite.  -inf adds 0; NaN gives NaN.
  /// Terms below the smallest normal float32 (x[k] - shift < -87.3365) add 0.
  double (*sum_exp)(const float* x, std::size_t n, float shift);

  /// out[k] = scale * exp(x[k] - shift).  Valid: x[k] <= shift, shift finite, scale finite, >= 0.
  /// -inf -> 0, NaN -> NaN.  No result is subnormal (they cost ten times as much): it is 0 where it
  /// or the exp is below 1.0001 times the smallest normal float32.  `out` may be `x`.
  void (*exp_shifted)(const float* x, std::size_t n, float shift, float scale, float* out);

  /// out[k] = log(x[k]) for x >= 0.  0 -> -inf, +inf -> +inf, negative or NaN -> NaN; subnormals
  /// are right.  `out` may be `x`.
  void (*log)(const float* x, std::size_t n, float* out);

  /// acc[k] += a * x[k], the product rounded before the sum.
  void (*axpy)(float a, const float* x, std::size_t n, float* acc);
};

/// The tables this build holds and this CPU (and OS) can run, slowest first.
std::vector<std::string_view> available_isas();

/// The table in use: the best available one, or the one that LOGITFUSE_ISA names at first use
/// (an unknown or unavailable name throws std::invalid_argument that lists what there is).
const Kernels& kernels();

/// Use the named table from now on, everywhere; same error as above.  For tests.
void set_isa(std::string_view isa);

/// The named table.
const Kernels& kernels(std::string_view isa);

}  // namespace logitfuse
