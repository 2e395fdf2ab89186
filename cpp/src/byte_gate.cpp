#include "logitfuse/byte_gate.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kDecay = 0.9;
constexpr float kFloor = -16.0F;  // nats: one impossible byte must not be all that is remembered
constexpr std::size_t kMaxFeatures =
    (kRowFeatures + 1) * kMaxGateMembers + kMaxGateMembers * (kMaxGateMembers - 1) / 2;

bool is_finite(std::span<const double> values) {
  return std::all_of(values.begin(), values.end(),
                     [](double value) { return std::isfinite(value); });
}

bool has_row(const float* row) {
  return row != nullptr &&
         std::any_of(row, row + kByteSymbols, [](float value) { return value != -kInf; });
}

std::size_t best_symbol(const float* row) {
  return static_cast<std::size_t>(std::max_element(row, row + kByteSymbols) - row);
}

double centred(float feature, double centre) {
  return std::isnan(feature) ? 0.0 : static_cast<double>(feature) - centre;
}

}  // namespace

RowFeatures row_features(const float* row, std::size_t member) {
  if (row == nullptr) return {kNaN, kNaN, kNaN};
  float best = -kInf;
  float second = -kInf;
  for (std::size_t b = 0; b < kByteSymbols; ++b) {
    if (std::isnan(row[b]) || row[b] == kInf) {
      throw FusionError("the next-byte row of member " + std::to_string(member) + " holds " +
                            (std::isnan(row[b]) ? "NaN" : "+inf"),
                        static_cast<int>(member));
    }
    second = std::max(second, std::min(best, row[b]));
    best = std::max(best, row[b]);
  }
  if (best == -kInf) return {kNaN, kNaN, kNaN};
  std::array<float, kByteSymbols> p;
  kernels().exp_shifted(row, kByteSymbols, best, 1.0F, p.data());
  double sum = 0.0;
  double weighted = 0.0;
  for (std::size_t b = 0; b < kByteSymbols; ++b) {
    if (p[b] == 0.0F) continue;
    sum += static_cast<double>(p[b]);
    weighted +=
        static_cast<double>(p[b]) * (static_cast<double>(row[b]) - static_cast<double>(best));
  }
  const double log_sum = log_of(sum);
  return {static_cast<float>(log_sum - weighted / sum), static_cast<float>(-log_sum),
          std::min(best - second, -kFloor)};
}

std::size_t gate_features_size(std::size_t members) {
  return (kRowFeatures + 1) * members + members * (members - 1) / 2;
}

void gate_features(std::span<const float* const> logprobs, std::span<const float> history,
                   std::span<float> out) {
  auto at = out.begin();
  for (std::size_t m = 0; m < logprobs.size(); ++m) {
    const RowFeatures features = row_features(logprobs[m], m);
    at = std::copy(features.begin(), features.end(), at);
  }
  for (std::size_t i = 0; i < logprobs.size(); ++i) {
    for (std::size_t j = i + 1; j < logprobs.size(); ++j) {
      const bool known = has_row(logprobs[i]) && has_row(logprobs[j]);
      *at++ = !known ? kNaN : (best_symbol(logprobs[i]) == best_symbol(logprobs[j]) ? 1.0F : 0.0F);
    }
  }
  std::copy(history.begin(), history.end(), at);
}

ByteHistory::ByteHistory(std::size_t members) : sums_(members), counts_(members), values_(members) {
  reset();
}

void ByteHistory::reset() {
  std::fill(sums_.begin(), sums_.end(), 0.0);
  std::fill(counts_.begin(), counts_.end(), 0.0);
  std::fill(values_.begin(), values_.end(), kNaN);
}

void ByteHistory::observe(std::span<const float> logprobs) {
  for (std::size_t m = 0; m < values_.size(); ++m) {
    if (std::isnan(logprobs[m])) continue;
    sums_[m] = kDecay * sums_[m] + static_cast<double>(std::max(logprobs[m], kFloor));
    counts_[m] = kDecay * counts_[m] + 1.0;
    values_[m] = static_cast<float>(sums_[m] / counts_[m]);
  }
}

ByteGate::ByteGate(std::vector<double> bias, std::vector<double> matrix, std::vector<double> centre)
    : bias_(std::move(bias)), matrix_(std::move(matrix)), centre_(std::move(centre)) {
  if (bias_.empty() || members() > kMaxGateMembers) {
    throw FusionError("a gate weighs 1 to " + std::to_string(kMaxGateMembers) + " members, not " +
                      std::to_string(members()));
  }
  const std::size_t features = gate_features_size(members());
  if (centre_.size() != features || matrix_.size() != features * members()) {
    throw FusionError("a gate of " + std::to_string(members()) + " members has " +
                      std::to_string(features) + " features, not " +
                      std::to_string(centre_.size()) + ", and a coefficient for each and member");
  }
  if (!is_finite(bias_) || !is_finite(matrix_) || !is_finite(centre_)) {
    throw FusionError("the numbers of a gate must be finite");
  }
}

void ByteGate::weights(std::span<const float* const> logprobs, std::span<const float> history,
                       std::span<double> out) const {
  if (logprobs.size() != members() || history.size() != members() || out.size() != members()) {
    throw FusionError("a gate of " + std::to_string(members()) + " members was given " +
                      std::to_string(logprobs.size()) + " rows and the history of " +
                      std::to_string(history.size()));
  }
  std::array<float, kMaxFeatures> buffer;
  const std::span<float> features(buffer.data(), centre_.size());
  gate_features(logprobs, history, features);
  double peak = -std::numeric_limits<double>::infinity();
  for (std::size_t m = 0; m < members(); ++m) {
    double score = bias_[m];
    for (std::size_t f = 0; f < features.size(); ++f) {
      score += matrix_[m * features.size() + f] * centred(features[f], centre_[f]);
    }
    const bool present = !std::isnan(features[m * kRowFeatures]);
    out[m] = present ? score : -std::numeric_limits<double>::infinity();
    peak = std::max(peak, out[m]);
  }
  if (!std::isfinite(peak)) throw FusionError("no member has a next-byte row to weigh");
  double sum = 0.0;
  for (double& weight : out) sum += weight = exp64_of(weight - peak);
  for (double& weight : out) weight /= sum;
}

CriticalGate::CriticalGate(double bias, std::array<double, kRowFeatures> coefficients,
                           std::array<double, kRowFeatures> centre)
    : bias_(bias), coefficients_(coefficients), centre_(centre) {
  if (!std::isfinite(bias) || !is_finite(coefficients_) || !is_finite(centre_)) {
    throw FusionError("the numbers of a gate must be finite");
  }
}

double CriticalGate::probability(const float* row) const {
  const RowFeatures features = row_features(row, 0);
  double score = bias_;
  for (std::size_t f = 0; f < kRowFeatures; ++f) {
    score += coefficients_[f] * centred(features[f], centre_[f]);
  }
  return 1.0 / (1.0 + exp64_of(-score));
}

}  // namespace logitfuse
