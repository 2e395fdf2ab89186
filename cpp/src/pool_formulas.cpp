#include "logitfuse/pool_formulas.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <string>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

constexpr std::string_view kNames[] = {"linear",  "log-linear", "power",      "min",
                                       "product", "contrast",   "consistency"};

constexpr double kMaxCoefficient = 1e6;  // beyond, float32 log-probabilities mean nothing
constexpr float kLeastExponent = 1e-3F;  // nearer to 0 float32 loses the digits

// Of CoRE: how fast disagreement costs, and the least entropy (nats) that a member is divided by.
constexpr float kBeta = 2.0F;
constexpr double kExpMinusBeta = 0.1353352832366127;  // exp(-kBeta)
constexpr double kLeastEntropy = 0.01;

void check(bool ok, const char* what, float value) {
  if (!ok) throw FusionError(std::string(what) + ", not " + std::to_string(value));
}

// A finite float32 for a finite sum, so that differences stay numbers.
float saturated(double sum) {
  constexpr double kMost = 1e38;
  if (sum == -std::numeric_limits<double>::infinity()) return -kInf;
  return static_cast<float>(std::clamp(sum, -kMost, kMost));
}

void weighted_sum(std::span<const Vote> votes, std::size_t n, float* out) {
  double sums[kBlock];
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    const std::size_t size = std::min(kBlock, n - begin);
    std::fill_n(sums, size, 0.0);
    for (const Vote& vote : votes) {
      const float* lp = vote.logprobs + begin;
      for (std::size_t k = 0; k < size; ++k) sums[k] += vote.weight * static_cast<double>(lp[k]);
    }
    for (std::size_t k = 0; k < size; ++k) out[begin + k] = saturated(sums[k]);
  }
}

void least(std::span<const Vote> votes, std::size_t n, float* out) {
  std::fill(out, out + n, kInf);
  for (const Vote& vote : votes) {
    for (std::size_t k = 0; k < n; ++k) out[k] = std::min(out[k], vote.logprobs[k]);
  }
}

// The weighted sum where the base finds the symbol plausible, at least `threshold`.  Where somebody
// who is subtracted gives the probability 0, there is nothing to subtract.
void contrast(std::span<const Vote> votes, float threshold, std::size_t n, float* out) {
  const float* base = votes[base_of(votes)].logprobs;
  for (std::size_t k = 0; k < n; ++k) {
    out[k] = -kInf;
    if (base[k] == -kInf || base[k] < threshold) continue;
    double sum = 0.0;
    for (const Vote& vote : votes) {
      const bool nothing = vote.weight < 0.0 && vote.logprobs[k] == -kInf;
      sum += vote.weight * static_cast<double>(nothing ? base[k] : vote.logprobs[k]);
    }
    out[k] = saturated(sum);
  }
}

}  // namespace

bool as_given(PoolKind kind) { return kind == PoolKind::product || kind == PoolKind::contrast; }

PoolKind pool_kind(std::string_view name) {
  const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found != std::end(kNames)) return static_cast<PoolKind>(found - std::begin(kNames));
  std::string known;
  for (const std::string_view other : kNames) {
    known.append(known.empty() ? "" : ", ").append(other);
  }
  throw FusionError("unknown pool '" + std::string(name) + "'; known: " + known);
}

double check_weights(PoolKind kind, std::span<const double> weights, std::size_t members) {
  if (weights.size() != members) {
    throw FusionError("expected " + std::to_string(members) + " weights, one per member, got " +
                      std::to_string(weights.size()));
  }
  const bool is_signed = kind == PoolKind::contrast;
  double total = 0.0;
  double most = 0.0;
  for (std::size_t m = 0; m < members; ++m) {
    const auto fail = [&](const char* what) {
      throw FusionError("the weight of member " + std::to_string(m) + " must be " + what +
                            ", not " + std::to_string(weights[m]),
                        static_cast<int>(m));
    };
    if (!std::isfinite(weights[m]) || (!is_signed && weights[m] < 0.0)) {
      fail(is_signed ? "a finite number" : "a finite number >= 0");
    }
    if (as_given(kind) && std::abs(weights[m]) > kMaxCoefficient) fail("at most 1e6 in size");
    total += weights[m];
    most = std::max(most, weights[m]);
  }
  if (is_signed && !(static_cast<float>(most) > 0.0F)) {
    throw FusionError("a contrast needs a member of positive weight, its base");
  }
  if (is_signed) return 1.0;
  if (!(total > 0.0) || std::isinf(total)) {
    throw FusionError("the weights must have a finite sum above 0, not " + std::to_string(total));
  }
  return as_given(kind) ? 1.0 : total;
}

std::vector<double> normalise_weights(PoolKind kind, std::span<const double> weights,
                                      std::size_t members) {
  const double total = check_weights(kind, weights, members);
  std::vector<double> normalised(weights.begin(), weights.end());
  for (double& weight : normalised) weight /= total;
  return normalised;
}

Formula::Formula(const PoolOptions& options) : options_(options) {
  check(options.floor <= 0.0F && options.floor != -kInf,
        "floor must be a finite log-probability <= 0", options.floor);
  check(std::isfinite(options.exponent) && std::abs(options.exponent) >= kLeastExponent,
        "exponent must be a finite number at least 0.001 away from 0 (0 is the log-linear pool)",
        options.exponent);
  check(options.plausibility > 0.0F && options.plausibility <= 1.0F,
        "plausibility must be in (0, 1] (a contrast without it rewards the absurd)",
        options.plausibility);
  if (options.union_top < 0) {
    throw FusionError("union_top must be at least 1 (or 0: off), not " +
                      std::to_string(options.union_top));
  }
}

Missing Formula::missing() const {
  switch (options_.kind) {
    case PoolKind::linear:
    case PoolKind::consistency:
      return Missing::zero;
    case PoolKind::power:
      return options_.exponent > 0.0F ? Missing::zero : Missing::floor;
    case PoolKind::contrast:
      return Missing::base;
    case PoolKind::log_linear:
    case PoolKind::min:
    case PoolKind::product:
      break;
  }
  return Missing::floor;
}

void Formula::score(std::span<const Vote> votes, std::size_t n, float* out) {
  if (options_.kind == PoolKind::consistency) {
    weigh_consistency(votes, n);
    power_mean(reliable_, 1.0F, n, out);
    return;
  }
  if (options_.kind == PoolKind::contrast) {
    const float* base = votes[base_of(votes)].logprobs;
    threshold_ = *std::max_element(base, base + n) +
                 static_cast<float>(log_of(static_cast<double>(options_.plausibility)));
  }
  apply(votes, n, out);
}

void Formula::apply(std::span<const Vote> votes, std::size_t n, float* out) {
  switch (options_.kind) {
    case PoolKind::linear:
    case PoolKind::consistency:
      return power_mean(votes, 1.0F, n, out);
    case PoolKind::power:
      return power_mean(votes, options_.exponent, n, out);
    case PoolKind::log_linear:
    case PoolKind::product:
      return weighted_sum(votes, n, out);
    case PoolKind::min:
      return least(votes, n, out);
    case PoolKind::contrast:
      return contrast(votes, threshold_, n, out);
  }
}

// log (sum_i exp(log w_i + r l_i))^{1/r}, each symbol shifted by its own largest term: exact even
// where the probabilities themselves would underflow.
void Formula::power_mean(std::span<const Vote> votes, float exponent, std::size_t n, float* out) {
  const bool positive = exponent > 0.0F;
  const float inverse = 1.0F / exponent;
  const float nothing = positive ? -kInf : 0.0F;  // exponent * (-inf - peak), where that is NaN
  peak_.assign(n, positive ? -kInf : kInf);
  for (const Vote& vote : votes) {
    const float shift = vote.log_weight * inverse;
    for (std::size_t k = 0; k < n; ++k) {
      const float term = vote.logprobs[k] + shift;
      peak_[k] = positive ? std::max(peak_[k], term) : std::min(peak_[k], term);
    }
  }
  std::fill(out, out + n, 0.0F);
  scratch_.resize(n);
  for (const Vote& vote : votes) {
    const float shift = vote.log_weight * inverse;
    const float* lp = vote.logprobs;
    for (std::size_t k = 0; k < n; ++k) {
      scratch_[k] = lp[k] == -kInf ? nothing : (lp[k] + shift - peak_[k]) * exponent;
    }
    kernels().exp_shifted(scratch_.data(), n, 0.0F, 1.0F, scratch_.data());
    kernels().axpy(1.0F, scratch_.data(), n, out);
  }
  kernels().log(out, n, out);
  for (std::size_t k = 0; k < n; ++k) out[k] = out[k] * inverse + peak_[k];
}

// With the mean p* and the distance d = |p_i - p*|, what member i says of a symbol counts by its
// consistency c = (exp(-beta d) - exp(-beta)) / (1 - exp(-beta)), and all that it says by
// m = w * mean of c / entropy of p_i.  Leaves the rows log(c p_i) and the weights m.
void Formula::weigh_consistency(std::span<const Vote> votes, std::size_t n) {
  const Kernels& k = kernels();
  probabilities_.resize(votes.size() * n);
  mean_.assign(n, 0.0F);
  peak_.assign(n, -kInf);  // what anybody says
  for (std::size_t i = 0; i < votes.size(); ++i) {
    float* p = &probabilities_[i * n];
    for (std::size_t s = 0; s < n; ++s) {
      p[s] = std::min(votes[i].logprobs[s], 0.0F);
      peak_[s] = std::max(peak_[s], p[s]);
    }
    k.exp_shifted(p, n, 0.0F, 1.0F, p);
    k.axpy(static_cast<float>(votes[i].weight), p, n, mean_.data());
  }
  const auto known = static_cast<double>(
      std::count_if(peak_.begin(), peak_.end(), [](float peak) { return peak != -kInf; }));
  reliable_.clear();
  for (std::size_t i = 0; i < votes.size(); ++i) {
    float* row = &probabilities_[i * n];
    const float* lp = votes[i].logprobs;
    double entropy = 0.0;
    for (std::size_t s = 0; s < n; ++s) {
      if (row[s] > 0.0F) entropy -= static_cast<double>(row[s]) * static_cast<double>(lp[s]);
      row[s] = -kBeta * std::min(std::abs(row[s] - mean_[s]), 1.0F);
    }
    k.exp_shifted(row, n, 0.0F, 1.0F, row);
    double agreement = 0.0;
    for (std::size_t s = 0; s < n; ++s) {
      const double c = (static_cast<double>(row[s]) - kExpMinusBeta) / (1.0 - kExpMinusBeta);
      row[s] = static_cast<float>(std::clamp(c, 0.0, 1.0));
      if (peak_[s] != -kInf) agreement += static_cast<double>(row[s]);
    }
    k.log(row, n, row);
    for (std::size_t s = 0; s < n; ++s) row[s] += lp[s];
    const double weight = votes[i].weight * (agreement / known) / std::max(entropy, kLeastEntropy);
    const bool counts = weight > 0.0;
    if (!counts) std::fill(row, row + n, -kInf);
    reliable_.push_back(
        {row, counts ? weight : 0.0, counts ? static_cast<float>(log_of(weight)) : 0.0F});
  }
}

// All formulas but the contrast grow with what any member says, so the corners of the box of what
// they can say of an unlisted symbol bound it.  Where a member that lacks it says the floor, there
// is a corner for every member that may be the one that has it.
float Formula::bound(std::span<const Vote> votes, std::span<const float> bounds) {
  if (options_.kind == PoolKind::contrast) {
    return bounds[base_of(votes)] < threshold_ ? -kInf : kInf;
  }
  const bool floors = missing() == Missing::floor;
  // No consistency exceeds 1, so that a symbol's score is at most its sum with the weights m.
  const auto judged =
      options_.kind == PoolKind::consistency ? std::span<const Vote>(reliable_) : votes;
  const std::size_t n = floors ? votes.size() : 1;
  corners_.resize(votes.size() * n);
  corner_votes_.clear();
  for (std::size_t i = 0; i < votes.size(); ++i) {
    const float most = judged[i].weight > 0.0 ? bounds[i] : -kInf;
    for (std::size_t j = 0; j < n; ++j) {
      corners_[i * n + j] = floors && i != j ? std::max(most, options_.floor) : most;
    }
    corner_votes_.push_back({&corners_[i * n], judged[i].weight, judged[i].log_weight});
  }
  corner_scores_.resize(n);
  apply(corner_votes_, n, corner_scores_.data());
  return *std::max_element(corner_scores_.begin(), corner_scores_.end());
}

std::size_t base_of(std::span<const Vote> votes) {
  const auto base =
      std::find_if(votes.begin(), votes.end(), [](const Vote& vote) { return vote.weight > 0.0; });
  return static_cast<std::size_t>(base - votes.begin());
}

double normalise(std::span<float> scores) {
  const float max = scores.empty() ? -kInf : *std::max_element(scores.begin(), scores.end());
  if (max == -kInf) {
    throw FusionError("the members exclude each other: no symbol has a pooled probability above 0");
  }
  const double log_z =
      static_cast<double>(max) + log_of(kernels().sum_exp(scores.data(), scores.size(), max));
  for (float& score : scores) {
    score = static_cast<float>(std::min(static_cast<double>(score) - log_z, 0.0));
  }
  return log_z;
}

void combine(const PoolOptions& options, std::span<const double> weights,
             std::span<const float> member_logprobs, std::span<float> out) {
  const std::size_t n = out.size();
  const std::size_t members = weights.size();
  if (n == 0 || member_logprobs.size() != members * n) {
    throw FusionError("expected log-probabilities of " + std::to_string(members) + " x " +
                      std::to_string(n) + " (members x symbols, at least one), got " +
                      std::to_string(member_logprobs.size()));
  }
  Formula formula(options);
  check_weights(options.kind, weights, members);
  std::vector<double> shares(weights.begin(), weights.end());
  for (std::size_t m = 0; m < members; ++m) {
    const auto row = member_logprobs.subspan(m * n, n);
    const auto nans =
        std::count_if(row.begin(), row.end(), [](float lp) { return std::isnan(lp); });
    const auto fail = [m](const char* what) {
      throw FusionError("the row of member " + std::to_string(m) + " holds " + what,
                        static_cast<int>(m));
    };
    if (nans == static_cast<std::ptrdiff_t>(n)) shares[m] = 0.0;
    if (shares[m] == 0.0) continue;
    if (nans != 0) fail("NaN");
    // float32 sums of probabilities are off by as much
    if (*std::max_element(row.begin(), row.end()) > 1e-3F) fail("a log-probability above 0");
  }
  const double total = check_weights(options.kind, shares, members);
  std::vector<Vote> votes;
  for (std::size_t m = 0; m < members; ++m) {
    const double weight = shares[m] / total;
    if (static_cast<float>(weight) == 0.0F) continue;
    const float log_weight = weight > 0.0 ? static_cast<float>(log_of(weight)) : 0.0F;
    votes.push_back({&member_logprobs[m * n], weight, log_weight});
  }
  formula.score(votes, n, out.data());
  normalise(out);
}

}  // namespace logitfuse
