// Learned gates over next-byte distributions: weights, or the wish to ask the others, as a function
// of a few cheap features.  The features are computed here only, in training and at run time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "logitfuse/fitting.hpp"

namespace logitfuse {

/// Changes with the meaning of any feature: a gate fitted to other ones is refused.
inline constexpr std::int32_t kGateFeatures = 1;
inline constexpr std::size_t kMaxGateMembers = 16;

/// Of one member's distribution: entropy (nats), largest log-probability, and how far the second
/// largest is below it (nats, at most 16).
inline constexpr std::size_t kRowFeatures = 3;
using RowFeatures = std::array<float, kRowFeatures>;

/// `row`: [kByteSymbols] log-probabilities, normalised here once more; null or nothing but -inf:
/// all features NaN.  Throws FusionError: NaN or +inf.
RowFeatures row_features(const float* row, std::size_t member);

/// kRowFeatures per member, one per pair of members, one per member.
std::size_t gate_features_size(std::size_t members);

/// Features of all: for each member those of its row; for each pair (0 1, 0 2, ..., 1 2, ...) 1 if
/// their best symbols agree, else 0; for each member its history.  NaN: unknown.
/// `logprobs`: [members], null for a member without a row.  out: [gate_features_size].
void gate_features(std::span<const float* const> logprobs, std::span<const float> history,
                   std::span<float> out);

/// The running mean of each member's log-probability of the bytes that came, newer ones counting
/// more (by 1/0.9 per byte).  At least -16 is counted for each; NaN until the first byte.
class ByteHistory {
 public:
  explicit ByteHistory(std::size_t members);
  /// Log-probabilities of the byte that came; NaN: not known, leaves that member's mean as it is.
  void observe(std::span<const float> logprobs);
  std::span<const float> values() const { return values_; }
  void reset();

 private:
  std::vector<double> sums_, counts_;
  std::vector<float> values_;
};

/// w = softmax(bias + matrix (x - centre)) with x the features; an unknown feature counts as its
/// centre.
class ByteGate {
 public:
  /// bias: [members], matrix: [members, features] row by row, centre: [features].
  /// Throws FusionError: sizes that do not fit, numbers that are not finite, too many members.
  ByteGate(std::vector<double> bias, std::vector<double> matrix, std::vector<double> centre);

  std::size_t members() const { return bias_.size(); }

  /// out: [members], sum 1; 0 for a member without a row.  Throws FusionError if all have none.
  void weights(std::span<const float* const> logprobs, std::span<const float> history,
               std::span<double> out) const;

 private:
  std::vector<double> bias_, matrix_, centre_;
};

/// Probability that asking the other members would help at this byte, from the primary's own
/// features: 1 / (1 + exp(-(bias + coefficients (x - centre)))).
class CriticalGate {
 public:
  /// Throws FusionError: numbers that are not finite.
  CriticalGate(double bias, std::array<double, kRowFeatures> coefficients,
               std::array<double, kRowFeatures> centre);
  /// `row`: as for `row_features`.
  double probability(const float* row) const;

 private:
  double bias_;
  std::array<double, kRowFeatures> coefficients_, centre_;
};

}  // namespace logitfuse
