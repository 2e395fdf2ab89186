// Where weights come from: convex fits to a scored text, and weights that follow a text as it goes.
//
// Log-probabilities are in nats; -inf says that a member rules an observation out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace logitfuse {

/// The next byte 0..255, or the end of the text: the columns of a byte matrix.
inline constexpr std::size_t kByteSymbols = 257;

struct Fit {
  std::vector<double> weights;  ///< [members], sum 1; exactly 0 for a member of no use
  double log_likelihood = 0.0;  ///< of all observations under these weights, nats
  double gap = 0.0;             ///< nats per observation: no other weights are better by more
  std::int32_t iterations = 0;
};

/// Linear-pool weights that maximise sum_t log sum_i w_i p_i(t).  Concave, so there is one best
/// value.  `logprobs` is [n, members], row by row.  Stops at a gap of `tolerance`, or after 10,000
/// iterations with the gap it has.  Throws FusionError: NaN, +inf, an observation that every member
/// rules out, fewer observations than members, a tolerance that is not above 0.
Fit fit_linear(std::span<const double> logprobs, std::size_t members, double tolerance);

/// What log-linear pooling needs to know of a text.
struct ByteMatrices {
  std::vector<const float*> logprobs;     ///< [members] of [n, kByteSymbols]
  std::span<const std::uint8_t> text;     ///< [n]: the bytes that came
  std::span<const std::int32_t> at = {};  ///< the positions that count
  float floor = -16.0F;                   ///< nats; lower log-probabilities count as this
};

/// Log-linear weights, w >= 0 with sum 1, that maximise the likelihood of the text under
/// p(b) = prod_i p_i(b)^w_i / Z, with Z over all bytes and the end.  Concave too.  Throws as above,
/// and for positions outside the text.
Fit fit_log_linear(const ByteMatrices& matrices, double tolerance);

/// out[k]: log-probability of the byte at position at[k] in the log-linear pool, nats.
void log_linear_logprobs(const ByteMatrices& matrices, std::span<const double> weights,
                         std::span<double> out);

struct OnlineOptions {
  double rate = 0.1;     ///< eta >= 0; 1 with share 0 is the Bayesian mixture
  double share = 0.002;  ///< of the weight, 0..1, returned to the prior per byte
};

/// Hedge with fixed share: after each unit w_i <- w_i p_i(unit)^rate, then a share of all weight
/// goes back to the prior, so that a member which was bad once can return.
/// Freund & Schapire, JCSS 55 (1997); Herbster & Warmuth, Mach. Learn. 32 (1998).
class OnlineWeights {
 public:
  /// Throws FusionError: a prior that is no set of weights, options out of range.
  OnlineWeights(std::span<const double> prior, OnlineOptions options);

  std::vector<double> weights() const;  ///< [members], sum 1
  void reset();

  /// Takes the log-probabilities of the unit just emitted and returns that of the linear pool under
  /// the weights from before.  NaN: a member that did not vote counts as if it had said what the
  /// pool said (a sleeping expert; Freund et al., STOC 1997).  If nobody voted, or all rule the
  /// unit out, the weights stay and the result is NaN or -inf.
  /// Throws FusionError: wrong count, +inf.
  double observe(std::span<const double> logprobs, std::int64_t n_bytes);

 private:
  OnlineOptions options_;
  std::vector<double> prior_, log_weights_, scratch_;
};

}  // namespace logitfuse
