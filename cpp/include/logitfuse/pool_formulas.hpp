// The formulas of the pool: N distributions over the same symbols and N weights become one.
//
// p_i are the members' distributions, w_i their weights; members of weight 0 are absent.
//
//   linear       p(s) = sum_i w_i p_i(s)                  linear opinion pool; Stone, 1961
//   log-linear   p(s) ∝ prod_i p_i(s)^{w_i}               logarithmic pool; Genest & Zidek, 1986
//   power        p(s) ∝ (sum_i w_i p_i(s)^r)^{1/r}        power mean; MOD, arXiv 2406.18853
//   min          p(s) ∝ min_i p_i(s)                      CP-Delta, arXiv 2302.10870
//   product      p(s) ∝ prod_i p_i(s)^{w_i}, w as given   product of experts; Hinton, 2002
//   contrast     p(s) ∝ prod_i p_i(s)^{w_i}, w signed     contrastive decoding, arXiv 2210.15097
//   consistency  p(s) ∝ sum_i m_i c_i(s) p_i(s)           CoRE, arXiv 2510.13855
//
// The first four and consistency take weights >= 0 that are normalised to sum 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace logitfuse {

enum class PoolKind : std::uint8_t {
  linear,
  log_linear,
  power,
  min,
  product,
  contrast,
  consistency
};

/// The kind of this name.  Throws FusionError that lists what there is.
PoolKind pool_kind(std::string_view name);

struct PoolOptions {
  PoolKind kind = PoolKind::linear;
  float floor = -16.0F;        ///< nats; what stands in where a member lacks a symbol
  float exponent = 0.5F;       ///< r of power; at least 0.001 away from 0
  float plausibility = 0.1F;   ///< of contrast: the least share of the base's best, in (0, 1]
  std::int32_t union_top = 0;  ///< of `Pool`, see there; 0: off
};

/// Whether the kind takes its weights as they are given (else they are divided by their sum).
bool as_given(PoolKind kind);

/// What the weights are to be divided by: their sum, or 1 where the kind takes them as given.
/// Throws FusionError: not one per member, negative (contrast: none positive), not finite, all
/// zero; product and contrast: larger than 1e6.
double check_weights(PoolKind kind, std::span<const double> weights, std::size_t members);

/// Weights that sum to 1, or as given where the kind takes them so.  Throws as `check_weights`.
std::vector<double> normalise_weights(PoolKind kind, std::span<const double> weights,
                                      std::size_t members);

/// What a member without a twin of a symbol contributes.
enum class Missing : std::uint8_t {
  zero,   ///< probability 0
  floor,  ///< exp(floor): doubt, but no veto
  base,   ///< what the base of the contrast says: no contrast
};

/// A present member's part in a formula.
struct Vote {
  const float* logprobs;  ///< [n], nats, the missing ones filled in
  double weight;          ///< not 0
  float log_weight;       ///< where weight > 0
};

/// One kind of pool over small matrices.  Owns its workspace.  Not for two threads at once.
class Formula {
 public:
  /// Throws FusionError on options out of range.
  explicit Formula(const PoolOptions& options);

  const PoolOptions& options() const { return options_; }
  Missing missing() const;

  /// out[k] = log of the unnormalised probability of symbol k; the linear pool's is normalised.
  void score(std::span<const Vote> votes, std::size_t n, float* out);

  /// A number that no symbol of which each member says at most `bounds` (or lacks it; at least one
  /// has it) exceeds in the scale of the last `score`; +inf where nothing can be said.
  float bound(std::span<const Vote> votes, std::span<const float> bounds);

 private:
  void apply(std::span<const Vote> votes, std::size_t n, float* out);
  void power_mean(std::span<const Vote> votes, float exponent, std::size_t n, float* out);
  void weigh_consistency(std::span<const Vote> votes, std::size_t n);

  PoolOptions options_;
  std::vector<float> peak_, scratch_;           // [n]
  std::vector<float> probabilities_, mean_;     // consistency: [votes, n] and [n]
  std::vector<Vote> reliable_;                  // consistency: the votes with weights m_i
  float threshold_ = 0.0F;                      // contrast: what the base must at least say
  std::vector<float> corners_, corner_scores_;  // bound
  std::vector<Vote> corner_votes_;
};

/// Where in `votes` the base of a contrast is: the first of positive weight.
std::size_t base_of(std::span<const Vote> votes);

/// Normalises log-probabilities in place; returns the log of the old sum.  Throws FusionError when
/// all are -inf.
double normalise(std::span<float> scores);

/// The kind applied to a dense matrix: member_logprobs is [members, n] in nats (-inf: 0; a row of
/// NaN: absent), out is [n], normalised nats.  Every member knows all symbols here.  Throws
/// FusionError: bad options, weights or sizes, NaN in part of a row, log-probabilities above 0,
/// nobody present, members that exclude each other.
void combine(const PoolOptions& options, std::span<const double> weights,
             std::span<const float> member_logprobs, std::span<float> out);

}  // namespace logitfuse
