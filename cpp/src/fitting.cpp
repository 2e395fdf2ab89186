#include "logitfuse/fitting.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "logitfuse/pool.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::int32_t kMaxIterations = 10000;
constexpr double kFlat = 1e-3;  // where a step of 1e-15 means that nothing is left to gain

// First and second derivative along a line.
struct Slope {
  double first = 0.0;
  double second = 0.0;
};

void check_fit(std::size_t n, std::size_t members, double tolerance) {
  if (!(tolerance > 0.0)) {
    throw FusionError("the tolerance must be above 0, not " + std::to_string(tolerance));
  }
  if (n < std::max<std::size_t>(members, 1)) {
    throw FusionError(std::to_string(n) + " observations are too few to weigh " +
                      std::to_string(members) + " members");
  }
}

[[noreturn]] void fail_value(std::size_t member, std::size_t observation, double value) {
  throw FusionError("the log-probability that member " + std::to_string(member) +
                        " gives observation " + std::to_string(observation) + " is " +
                        std::to_string(value),
                    static_cast<int>(member));
}

double log_sum_exp(std::span<const double> values) {
  const double peak = *std::max_element(values.begin(), values.end());
  if (std::isinf(peak)) return peak;
  double sum = 0.0;
  for (const double value : values) sum += exp64_of(value - peak);
  return peak + log_of(sum);
}

// Mean over the observations of log sum_i w_i p_i.
class LinearObjective {
 public:
  LinearObjective(std::span<const double> logprobs, std::size_t members)
      : members_(members), n_(logprobs.size() / members), p_(logprobs.size()) {
    for (std::size_t t = 0; t < n_; ++t) {
      const double* row = &logprobs[t * members];
      for (std::size_t m = 0; m < members; ++m) {
        if (std::isnan(row[m]) || row[m] == kInf) fail_value(m, t, row[m]);
      }
      const double peak = *std::max_element(row, row + members);
      if (peak == -kInf) {
        throw FusionError("every member rules out observation " + std::to_string(t));
      }
      // A factor common to a row changes no weight and keeps the row from underflow.
      for (std::size_t m = 0; m < members; ++m) p_[t * members + m] = exp64_of(row[m] - peak);
      peaks_ += peak;
    }
  }

  std::size_t size() const { return n_; }

  double log_likelihood(std::span<const double> w) const {
    double sum = peaks_;
    for (std::size_t t = 0; t < n_; ++t) sum += log_of(mixture(t, w));
    return sum;
  }

  void gradient(std::span<const double> w, std::span<double> g) const {
    std::fill(g.begin(), g.end(), 0.0);
    for (std::size_t t = 0; t < n_; ++t) {
      const double inverse = 1.0 / mixture(t, w);
      for (std::size_t m = 0; m < members_; ++m) g[m] += p_[t * members_ + m] * inverse;
    }
    for (double& value : g) value /= static_cast<double>(n_);
  }

  Slope slope(std::span<const double> w, std::size_t to, std::size_t from) const {
    Slope sum;
    for (std::size_t t = 0; t < n_; ++t) {
      const double* p = &p_[t * members_];
      const double difference = p[to] - p[from];
      if (difference == 0.0) continue;
      const double ratio = difference / mixture(t, w);
      sum.first += ratio;
      sum.second -= ratio * ratio;
    }
    return {sum.first / static_cast<double>(n_), sum.second / static_cast<double>(n_)};
  }

 private:
  double mixture(std::size_t t, std::span<const double> w) const {
    double sum = 0.0;
    for (std::size_t m = 0; m < members_; ++m) sum += w[m] * p_[t * members_ + m];
    return sum;
  }

  std::size_t members_, n_;
  std::vector<double> p_;  // [n, members], the largest of each row is 1
  double peaks_ = 0.0;
};

// Mean over the positions of sum_i w_i l_i(byte) - log sum_b exp sum_i w_i l_i(b).
class LogLinearObjective {
 public:
  explicit LogLinearObjective(const ByteMatrices& matrices) : matrices_(matrices) {
    for (const std::int32_t t : matrices.at) {
      if (t < 0 || static_cast<std::size_t>(t) >= matrices.text.size()) {
        throw FusionError("position " + std::to_string(t) + " is not in a text of " +
                          std::to_string(matrices.text.size()) + " bytes");
      }
      for (std::size_t m = 0; m < members(); ++m) {
        const float* from = matrices.logprobs[m] + static_cast<std::size_t>(t) * kByteSymbols;
        for (std::size_t b = 0; b < kByteSymbols; ++b) {
          if (std::isnan(from[b]) || from[b] == std::numeric_limits<float>::infinity()) {
            fail_value(m, static_cast<std::size_t>(t), static_cast<double>(from[b]));
          }
        }
      }
    }
  }

  std::size_t size() const { return matrices_.at.size(); }
  std::size_t members() const { return matrices_.logprobs.size(); }

  double log_likelihood(std::span<const double> w) const {
    double sum = 0.0;
    for (std::size_t k = 0; k < size(); ++k) sum += logprob(k, w);
    return sum;
  }

  double logprob(std::size_t k, std::span<const double> w) const {
    Row pooled;
    const double log_z = pool(k, w, pooled);
    return static_cast<double>(pooled[byte(k)]) - log_z;
  }

  void gradient(std::span<const double> w, std::span<double> g) const {
    std::fill(g.begin(), g.end(), 0.0);
    Row pooled, own;
    for (std::size_t k = 0; k < size(); ++k) {
      normalise(pooled, pool(k, w, pooled));
      for (std::size_t m = 0; m < members(); ++m) {
        read(k, m, own);
        g[m] += static_cast<double>(own[byte(k)]) - mean(pooled, own);
      }
    }
    for (double& value : g) value /= static_cast<double>(size());
  }

  Slope slope(std::span<const double> w, std::size_t to, std::size_t from) const {
    Slope sum;
    Row pooled, difference, own;
    for (std::size_t k = 0; k < size(); ++k) {
      normalise(pooled, pool(k, w, pooled));
      read(k, to, difference);
      read(k, from, own);
      kernels().axpy(-1.0F, own.data(), kByteSymbols, difference.data());
      const double expected = mean(pooled, difference);
      sum.first += static_cast<double>(difference[byte(k)]) - expected;
      for (std::size_t b = 0; b < kByteSymbols; ++b) {
        const double off = static_cast<double>(difference[b]) - expected;
        sum.second -= static_cast<double>(pooled[b]) * off * off;
      }
    }
    return {sum.first / static_cast<double>(size()), sum.second / static_cast<double>(size())};
  }

 private:
  using Row = std::array<float, kByteSymbols>;

  std::size_t byte(std::size_t k) const {
    return matrices_.text[static_cast<std::size_t>(matrices_.at[k])];
  }

  void read(std::size_t k, std::size_t m, Row& out) const {
    const float* from =
        matrices_.logprobs[m] + static_cast<std::size_t>(matrices_.at[k]) * kByteSymbols;
    for (std::size_t b = 0; b < kByteSymbols; ++b) out[b] = std::max(from[b], matrices_.floor);
  }

  // Unnormalised pooled log-probabilities; returns the log of their sum.
  double pool(std::size_t k, std::span<const double> w, Row& out) const {
    out.fill(0.0F);
    Row own;
    for (std::size_t m = 0; m < members(); ++m) {
      read(k, m, own);
      kernels().axpy(static_cast<float>(w[m]), own.data(), kByteSymbols, out.data());
    }
    const float peak = *std::max_element(out.begin(), out.end());
    return static_cast<double>(peak) + log_of(kernels().sum_exp(out.data(), kByteSymbols, peak));
  }

  static void normalise(Row& pooled, double log_z) {
    const auto shift =
        std::max(static_cast<float>(log_z), *std::max_element(pooled.begin(), pooled.end()));
    kernels().exp_shifted(pooled.data(), kByteSymbols, shift, 1.0F, pooled.data());
  }

  static double mean(const Row& probabilities, const Row& values) {
    double sum = 0.0;
    for (std::size_t b = 0; b < kByteSymbols; ++b) {
      sum += static_cast<double>(probabilities[b]) * static_cast<double>(values[b]);
    }
    return sum;
  }

  const ByteMatrices& matrices_;
};

// Moves weight between two members to where the objective is highest: Newton's method, kept inside
// a bracket.
template <typename Objective>
void exchange(const Objective& objective, std::vector<double>& w, std::size_t to,
              std::size_t from) {
  const std::vector<double> start = w;
  double low = 0.0;
  double high = start[from];
  const auto move = [&](double amount) {
    w[to] = start[to] + amount;
    w[from] = start[from] - amount;
  };
  move(high);
  if (objective.slope(w, to, from).first >= 0.0) return;  // all of it: an exact zero
  double at = 0.0;
  for (int k = 0; k < 60; ++k) {
    move(at);
    const Slope slope = objective.slope(w, to, from);
    (slope.first > 0.0 ? low : high) = at;
    double next = at - slope.first / slope.second;
    if (std::abs(next - at) <= 1e-15) {
      if (std::abs(slope.first) < kFlat) return;
      next = kNaN;  // beside a pole, where a weight that somebody needs is next to 0
    }
    if (!(next >= low && next <= high)) next = 0.5 * (low + high);
    at = next;
  }
}

// Maximises a concave function over the simplex by exchanging weight between the member that the
// gradient praises most and the one it praises least (Boehning, Ann. Inst. Statist. Math. 37,
// 1985).  Unlike EM it reaches the faces of the simplex.  Concavity gives the stopping rule:
// no weights are better by more than max_i g_i - sum_i w_i g_i.
template <typename Objective>
Fit maximise(const Objective& objective, std::size_t members, double tolerance) {
  Fit fit;
  fit.weights.assign(members, 1.0 / static_cast<double>(members));
  std::vector<double> g(members);
  for (;; ++fit.iterations) {
    objective.gradient(fit.weights, g);
    std::size_t best = 0;
    std::size_t worst = members;
    double mean = 0.0;
    for (std::size_t m = 0; m < members; ++m) {
      if (g[m] > g[best]) best = m;
      if (fit.weights[m] > 0.0 && (worst == members || g[m] < g[worst])) worst = m;
      mean += fit.weights[m] * g[m];
    }
    fit.gap = std::max(0.0, g[best] - mean);
    if (fit.gap <= tolerance || best == worst || fit.iterations == kMaxIterations) break;
    exchange(objective, fit.weights, best, worst);
  }
  fit.weights = normalise_weights(PoolKind::linear, fit.weights, members);
  fit.log_likelihood = objective.log_likelihood(fit.weights);
  return fit;
}

}  // namespace

Fit fit_linear(std::span<const double> logprobs, std::size_t members, double tolerance) {
  check_fit(members == 0 ? 0 : logprobs.size() / members, members, tolerance);
  return maximise(LinearObjective(logprobs, members), members, tolerance);
}

Fit fit_log_linear(const ByteMatrices& matrices, double tolerance) {
  check_fit(matrices.at.size(), matrices.logprobs.size(), tolerance);
  return maximise(LogLinearObjective(matrices), matrices.logprobs.size(), tolerance);
}

void log_linear_logprobs(const ByteMatrices& matrices, std::span<const double> weights,
                         std::span<double> out) {
  const LogLinearObjective objective(matrices);
  const std::vector<double> w =
      normalise_weights(PoolKind::linear, weights, matrices.logprobs.size());
  for (std::size_t k = 0; k < out.size(); ++k) out[k] = objective.logprob(k, w);
}

OnlineWeights::OnlineWeights(std::span<const double> prior, OnlineOptions options)
    : options_(options),
      prior_(normalise_weights(PoolKind::linear, prior, prior.size())),
      scratch_(prior.size()) {
  if (!(options.rate >= 0.0) || std::isinf(options.rate)) {
    throw FusionError("the rate must be a finite number >= 0, not " + std::to_string(options.rate));
  }
  if (!(options.share >= 0.0 && options.share <= 1.0)) {
    throw FusionError("the share must be within 0..1, not " + std::to_string(options.share));
  }
  reset();
}

void OnlineWeights::reset() {
  log_weights_.clear();
  for (const double weight : prior_) log_weights_.push_back(log_of(weight));
}

std::vector<double> OnlineWeights::weights() const {
  std::vector<double> weights;
  for (const double log_weight : log_weights_) weights.push_back(exp64_of(log_weight));
  return normalise_weights(PoolKind::linear, weights, weights.size());
}

double OnlineWeights::observe(std::span<const double> logprobs, std::int64_t n_bytes) {
  if (logprobs.size() != prior_.size()) {
    throw FusionError("expected " + std::to_string(prior_.size()) + " log-probabilities, got " +
                      std::to_string(logprobs.size()));
  }
  double awake = 0.0;  // weight of those who voted
  for (std::size_t m = 0; m < prior_.size(); ++m) {
    if (logprobs[m] == kInf) {
      throw FusionError("the log-probability of member " + std::to_string(m) + " is inf",
                        static_cast<int>(m));
    }
    const bool asleep = std::isnan(logprobs[m]);
    scratch_[m] = asleep ? -kInf : log_weights_[m] + logprobs[m];
    if (!asleep) awake += exp64_of(log_weights_[m]);
  }
  if (!(awake > 0.0)) return kNaN;
  const double mixture = log_sum_exp(scratch_) - log_of(awake);
  if (mixture == -kInf) return mixture;
  if (options_.rate > 0.0) {  // 0 * -inf is NaN
    for (std::size_t m = 0; m < prior_.size(); ++m) {
      log_weights_[m] += options_.rate * (std::isnan(logprobs[m]) ? mixture : logprobs[m]);
    }
  }
  const double total = log_sum_exp(log_weights_);
  for (double& log_weight : log_weights_) log_weight -= total;
  if (options_.share > 0.0 && n_bytes > 0) {
    const double kept = exp64_of(static_cast<double>(n_bytes) * log_of(1.0 - options_.share));
    for (std::size_t m = 0; m < prior_.size(); ++m) {
      log_weights_[m] = log_of(kept * exp64_of(log_weights_[m]) + (1.0 - kept) * prior_[m]);
    }
  }
  return mixture;
}

}  // namespace logitfuse
