// Scalar helpers of the core whose bits must not depend on the C library or the CPU.
#pragma once

#include <cmath>
#include <limits>

#include "logitfuse/kernels.hpp"

namespace logitfuse {

/// scale * exp(x) for x <= 0, flushed to 0 below the smallest normal float32.
inline float exp_of(float x, float scale = 1.0F) {
  float value = 0.0F;
  kernels().exp_shifted(&x, 1, 0.0F, scale, &value);
  return value;
}

/// Natural logarithm of x >= 0 in float64, relative error below 1e-15 away from 1.  Only sums,
/// products and quotients, so every IEEE machine gives the same bits (libm picks by CPU).
inline double log_of(double x) {
  if (x == 0.0) return -std::numeric_limits<double>::infinity();
  if (!(x < std::numeric_limits<double>::infinity())) return x;
  int exponent = 0;
  double mantissa = std::frexp(x, &exponent);  // exact; in [1/2, 1)
  if (mantissa < 0.70710678118654752) {
    mantissa *= 2.0;
    --exponent;
  }
  // log(m) = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.172: eleven terms of the series suffice.
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double square = s * s;
  double series = 0.0;
  for (int k = 21; k >= 1; k -= 2) series = series * square + 1.0 / k;
  return 2.0 * s * series + exponent * 0.69314718055994531;
}

/// e^x in float64, relative error below 1e-15; 0 below the smallest normal float64.  As `log_of`.
inline double exp64_of(double x) {
  if (!(x > -708.0)) return x != x ? x : 0.0;
  if (x > 709.0) return std::numeric_limits<double>::infinity();
  const double k = std::floor(x * 1.4426950408889634 + 0.5);
  // k ln 2 in two parts, the first of which has so few bits that its product is exact.
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double series = 1.0;  // |r| <= 0.347: the fourteenth term is below 1e-17
  for (int n = 13; n >= 1; --n) series = 1.0 + series * r / n;
  return std::ldexp(series, static_cast<int>(k));
}

/// log(e^a + e^b) for a, b < +inf.
inline double log_add(double a, double b) {
  const double high = a < b ? b : a;
  const double low = a < b ? a : b;
  if (low == -std::numeric_limits<double>::infinity()) return high;
  return high + log_of(1.0 + static_cast<double>(exp_of(static_cast<float>(low - high))));
}

}  // namespace logitfuse
