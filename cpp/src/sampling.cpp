#include "logitfuse/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

void check(bool ok, const char* name, float value, const char* range) {
  if (!ok) {
    throw FusionError(std::string(name) + " must be " + range + ", not " + std::to_string(value));
  }
}

}  // namespace

Sampler::Sampler(SamplingOptions options, std::vector<Bias> biases)
    : options_(options), biases_(std::move(biases)), random_(options.seed) {
  check(std::isfinite(options_.temperature), "temperature", options_.temperature, "finite");
  check(options_.top_p >= 0.0F && options_.top_p <= 1.0F, "top_p", options_.top_p, "in [0, 1]");
  check(options_.min_p >= 0.0F && options_.min_p <= 1.0F, "min_p", options_.min_p, "in [0, 1]");
  check(options_.typical_p > 0.0F && options_.typical_p <= 1.0F, "typical_p", options_.typical_p,
        "in (0, 1]");
  check(options_.repeat_penalty > 0.0F && std::isfinite(options_.repeat_penalty), "repeat_penalty",
        options_.repeat_penalty, "above 0");
  check(std::isfinite(options_.frequency_penalty), "frequency_penalty", options_.frequency_penalty,
        "finite");
  check(std::isfinite(options_.presence_penalty), "presence_penalty", options_.presence_penalty,
        "finite");
  for (const Bias& bias : biases_) {
    check(bias.value < kInf, "a logit bias", bias.value, "below +inf");
  }
  touch();
}

bool Sampler::processes() const {
  return !biases_.empty() || options_.repeat_penalty != 1.0F ||
         options_.frequency_penalty != 0.0F || options_.presence_penalty != 0.0F;
}

bool Sampler::plain() const {
  return options_.temperature == 1.0F && options_.top_k <= 0 && options_.top_p >= 1.0F &&
         options_.min_p <= 0.0F && options_.typical_p >= 1.0F && !processes();
}

// 53 random bits make a double in [0, 1): the same on every platform, unlike std distributions.
double Sampler::uniform() { return static_cast<double>(random_() >> 11) * 0x1.0p-53; }

void Sampler::touch() {
  touched_.clear();
  for (const Bias& bias : biases_) touched_.push_back(bias.symbol);
  touched_.insert(touched_.end(), history_.begin(), history_.end());
}

void Sampler::accept(std::int32_t symbol) {
  const bool penalises = options_.repeat_penalty != 1.0F || options_.frequency_penalty != 0.0F ||
                         options_.presence_penalty != 0.0F;
  if (!penalises || options_.penalty_last_n <= 0) return;
  history_.push_back(symbol);
  if (history_.size() > static_cast<std::size_t>(options_.penalty_last_n)) history_.pop_front();
  touch();
}

void Sampler::process(Fused& fused) const {
  const std::size_t n = fused.size();
  if (touched_.empty() || n == 0) return;
  std::vector<float> logits = fused.logprobs;
  double listed = 0.0;
  for (const float logit : logits) listed += static_cast<double>(exp_of(logit));
  for (const Bias& bias : biases_) {
    for (std::size_t k = 0; k < n; ++k) {
      if (fused.symbols[k] == bias.symbol) logits[k] += bias.value;
    }
  }
  for (std::size_t k = 0; k < n; ++k) {
    const auto count = std::count(history_.begin(), history_.end(), fused.symbols[k]);
    if (count == 0) continue;
    float& logit = logits[k];
    logit = logit <= 0.0F ? logit * options_.repeat_penalty : logit / options_.repeat_penalty;
    logit -= static_cast<float>(count) * options_.frequency_penalty + options_.presence_penalty;
  }
  const float max = *std::max_element(logits.begin(), logits.end());
  if (max == -kInf) throw FusionError("the logit bias forbids every candidate");
  // What is not listed keeps its mass.
  const bool whole = fused.outside == -kInf || fused.partial;
  const double rest = whole ? 0.0 : std::max(0.0, 1.0 - listed);
  const auto log_rest = static_cast<float>(log_of(rest));
  const float peak = std::max(max, log_rest);
  const double total =
      kernels().sum_exp(logits.data(), n, peak) + static_cast<double>(exp_of(log_rest - peak));
  const double log_z = static_cast<double>(peak) + log_of(total);

  std::vector<std::int32_t> order;
  for (std::size_t k = 0; k < n; ++k) {
    if (logits[k] != -kInf) order.push_back(static_cast<std::int32_t>(k));
  }
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const auto i = static_cast<std::size_t>(a);
    const auto j = static_cast<std::size_t>(b);
    return logits[i] != logits[j] ? logits[i] > logits[j] : fused.symbols[i] < fused.symbols[j];
  };
  std::sort(order.begin(), order.end(), before);
  Fused sorted;
  const std::size_t members = fused.member_logprobs.size() / n;
  for (const std::int32_t k : order) {
    const auto from = static_cast<std::size_t>(k);
    sorted.symbols.push_back(fused.symbols[from]);
    sorted.logprobs.push_back(static_cast<float>(static_cast<double>(logits[from]) - log_z));
  }
  for (std::size_t m = 0; m < members; ++m) {
    for (const std::int32_t k : order) {
      sorted.member_logprobs.push_back(fused.member_logprobs[m * n + static_cast<std::size_t>(k)]);
    }
  }
  sorted.outside = static_cast<float>(static_cast<double>(fused.outside) - log_z);
  sorted.partial = fused.partial;
  fused = std::move(sorted);
}

// probabilities_ = softmax of logits_ / temperature; returns the sum before normalisation.
double Sampler::weigh(float temperature) {
  const std::size_t n = logits_.size();
  probabilities_.resize(n);
  for (std::size_t k = 0; k < n; ++k) probabilities_[k] = (logits_[k] - logits_[0]) / temperature;
  const float max = *std::max_element(probabilities_.begin(), probabilities_.end());
  const double sum = kernels().sum_exp(probabilities_.data(), n, max);
  kernels().exp_shifted(probabilities_.data(), n, max, static_cast<float>(1.0 / sum),
                        probabilities_.data());
  return sum;
}

// Smallest set, nearest to the entropy first, that holds more than typical_p of the mass.
void Sampler::keep_typical() {
  weigh(1.0F);
  const std::size_t n = kept_.size();
  double entropy = 0.0;
  std::vector<double> surprise(n);
  for (std::size_t k = 0; k < n; ++k) {
    const auto p = static_cast<double>(probabilities_[k]);
    surprise[k] = -log_of(p);
    if (p > 0.0) entropy += p * surprise[k];
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::abs(surprise[a] - entropy) < std::abs(surprise[b] - entropy);
  });
  double sum = 0.0;
  std::size_t last = 0;
  while (last < n) {
    sum += static_cast<double>(probabilities_[order[last++]]);
    if (sum > static_cast<double>(options_.typical_p)) break;
  }
  order.resize(last);
  std::sort(order.begin(), order.end());  // back to descending probability
  for (std::size_t k = 0; k < last; ++k) {
    kept_[k] = kept_[order[k]];
    logits_[k] = logits_[order[k]];
  }
  kept_.resize(last);
  logits_.resize(last);
}

// `total`: the mass, in units of exp(logits_), of the distribution that top_p is a share of.
void Sampler::keep_top_p(double total) {
  double sum = 0.0;
  for (std::size_t k = 0; k < kept_.size(); ++k) {
    sum += static_cast<double>(exp_of(logits_[k]));
    if (sum >= static_cast<double>(options_.top_p) * total) {
      kept_.resize(k + 1);
      logits_.resize(k + 1);
      return;
    }
  }
}

bool Sampler::filter(const Fused& fused) {
  const std::size_t n = fused.size();
  if (n == 0) throw FusionError("there is no candidate to choose from");
  // Closed: whatever could still be chosen is listed.
  bool closed = fused.outside == -kInf;
  const auto covers = [&](float logprob) { return logprob >= fused.outside; };
  kept_.resize(n);
  std::iota(kept_.begin(), kept_.end(), 0);
  logits_ = fused.logprobs;
  if (greedy()) {
    kept_.resize(1);
    logits_.resize(1);
    probabilities_.assign(1, 1.0F);
    return closed || covers(logits_[0]);
  }
  if (options_.top_k > 0) {
    const auto k = static_cast<std::size_t>(options_.top_k);
    if (k <= n) {
      closed = closed || covers(logits_[k - 1]);
      kept_.resize(k);
      logits_.resize(k);
    }
    if (!closed) return false;
  }
  if (options_.typical_p < 1.0F) {
    if (!closed) return false;
    keep_typical();
  }
  if (options_.top_p < 1.0F) {
    if (!closed && fused.partial) return false;
    double total = 1.0;
    if (closed) {
      total = 0.0;
      for (const float logit : logits_) total += static_cast<double>(exp_of(logit));
    }
    const std::size_t before = kept_.size();
    keep_top_p(total);
    closed = closed || (kept_.size() < before && covers(logits_.back()));
    if (!closed) return false;
  }
  if (options_.min_p > 0.0F) {
    const auto least = static_cast<float>(static_cast<double>(logits_[0]) +
                                          log_of(static_cast<double>(options_.min_p)));
    closed = closed || covers(least);
    std::size_t left = 1;
    while (left < logits_.size() && logits_[left] >= least) ++left;
    kept_.resize(left);
    logits_.resize(left);
  }
  if (!closed) return false;
  weigh(options_.temperature);
  return true;
}

std::int32_t Sampler::draw(const Fused& fused) {
  if (!filter(fused)) return kNone;
  if (kept_.size() == 1) return kept_[0];
  const double u = uniform();
  double total = 0.0;
  for (const float p : probabilities_) total += static_cast<double>(p);
  double sum = 0.0;
  for (std::size_t k = 0; k + 1 < kept_.size(); ++k) {
    sum += static_cast<double>(probabilities_[k]);
    if (u * total < sum) return kept_[k];
  }
  return kept_.back();
}

}  // namespace logitfuse
