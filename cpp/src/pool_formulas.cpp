// The formulas of the pool: combine what the members say of the candidates, or of all symbols.
#include <algorithm>
#include <cmath>
#include <limits>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "logitfuse/pool.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// A bound on log-probabilities that also holds for what float32 operations make of them (checked in
// tests/python/test_fuse.py): each loses a few 2^-24, relative to it and absolute.
float rounded_up(double bound) {
  return static_cast<float>(bound == -kInf ? bound : bound + 1e-6 * (1.0 + std::abs(bound)));
}

}  // namespace

void Pool::fail_excluded() {
  throw FusionError("the members exclude each other: no symbol has a pooled probability above 0");
}

// log sum_i exp(log w_i + l_i), each symbol shifted by its own largest term: exact even where the
// probabilities themselves would underflow.
void Pool::combine_linear() {
  const std::size_t n = fused_.size();
  float* out = fused_.logprobs.data();
  peak_.assign(n, -kInf);
  float bound_peak = -kInf;
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (members_[m].row == nullptr) continue;
    const float* lp = &fused_.member_logprobs[m * n];
    for (std::size_t k = 0; k < n; ++k) {
      peak_[k] = std::max(peak_[k], lp[k] + members_[m].log_weight);
    }
    bound_peak = std::max(bound_peak, members_[m].bound + members_[m].log_weight);
  }
  scratch_.resize(n);
  double bound = 0.0;
  for (std::size_t m = 0; m < members_.size(); ++m) {
    const Member& member = members_[m];
    if (member.row == nullptr) continue;
    const float* lp = &fused_.member_logprobs[m * n];
    for (std::size_t k = 0; k < n; ++k) {
      scratch_[k] = lp[k] == -kInf ? -kInf : lp[k] + member.log_weight - peak_[k];
    }
    kernels().exp_shifted(scratch_.data(), n, 0.0F, 1.0F, scratch_.data());
    kernels().axpy(1.0F, scratch_.data(), n, out);
    if (bound_peak == -kInf) continue;
    bound += static_cast<double>(exp_of(member.bound + member.log_weight - bound_peak));
  }
  kernels().log(out, n, out);
  for (std::size_t k = 0; k < n; ++k) out[k] = std::min(out[k] + peak_[k], 0.0F);
  fused_.outside = std::min(rounded_up(static_cast<double>(bound_peak) + log_of(bound)), 0.0F);
  fused_.partial = false;
}

void Pool::combine_log_linear() {
  const std::size_t n = fused_.size();
  float* out = fused_.logprobs.data();
  // A symbol that is not listed: each member has it, within its bound, or lacks it, at the floor.
  // At least one has it.
  double bound = 0.0;
  double spelled = -std::numeric_limits<double>::infinity();
  for (std::size_t m = 0; m < members_.size(); ++m) {
    const Member& member = members_[m];
    if (member.row == nullptr) continue;
    const float* lp = &fused_.member_logprobs[m * n];
    for (std::size_t k = 0; k < n; ++k) {
      const bool has = lp[k] != -kInf || alignment_->twin(m, fused_.symbols[k]) != kNone;
      out[k] += member.weight * (has ? lp[k] : options_.floor);
    }
    const auto weight = static_cast<double>(member.weight);
    bound += weight * static_cast<double>(std::max(member.bound, options_.floor));
    spelled = std::max(spelled,
                       weight * static_cast<double>(std::min(member.bound - options_.floor, 0.0F)));
  }
  for (std::size_t k = 0; k < n; ++k) {
    if (!known(fused_.symbols[k])) out[k] = -kInf;
  }
  fused_.outside = rounded_up(bound + spelled - normalise(fused_.logprobs));
  fused_.partial = fused_.outside != -kInf;
}

double Pool::normalise(std::span<float> scores) const {
  const float max = *std::max_element(scores.begin(), scores.end());
  if (max == -kInf) fail_excluded();
  const double log_z =
      static_cast<double>(max) + log_of(kernels().sum_exp(scores.data(), scores.size(), max));
  for (float& score : scores) {
    score = static_cast<float>(std::min(static_cast<double>(score) - log_z, 0.0));
  }
  return log_z;
}

// member.dense[token] = p(token) (linear) or log p(token) (log-linear) for canonical tokens, the
// tokens of one symbol summed; 0 or -inf for all others.
void Pool::dense_member(std::size_t m) {
  Member& member = members_[m];
  const Vocab& vocab = alignment_->vocab(m);
  const bool linear = options_.kind == PoolKind::linear;
  member.dense.assign(static_cast<std::size_t>(vocab.size()), linear ? 0.0F : -kInf);
  for (const IdRange span : vocab.spans()) {
    const auto n = static_cast<std::size_t>(span.end - span.begin);
    const float* from = member.row + span.begin;
    float* to = &member.dense[static_cast<std::size_t>(span.begin)];
    if (linear) {
      kernels().exp_shifted(from, n, member.max, static_cast<float>(1.0 / member.sum), to);
    } else {
      for (std::size_t k = 0; k < n; ++k) {
        to[k] = static_cast<float>(log_probability(member, from[k]));
      }
    }
  }
  for (const std::int32_t shared : vocab.shared()) {
    const float sum = token_logprob(member, vocab, shared);
    float value = sum;
    if (linear) kernels().exp_shifted(&sum, 1, 0.0F, 1.0F, &value);
    member.dense[static_cast<std::size_t>(shared)] = value;
    for (std::int32_t id = vocab.next_same(shared); id != kNone; id = vocab.next_same(id)) {
      member.dense[static_cast<std::size_t>(id)] = linear ? 0.0F : -kInf;
    }
  }
}

void Pool::dense(std::span<float> out) {
  if (out.size() != static_cast<std::size_t>(alignment_->size())) {
    throw FusionError("the dense row has " + std::to_string(alignment_->size()) +
                      " symbols, the output " + std::to_string(out.size()));
  }
  const bool linear = options_.kind == PoolKind::linear;
  const float missing = linear ? 0.0F : options_.floor;
  std::fill(out.begin(), out.end(), 0.0F);
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (members_[m].row == nullptr) continue;
    dense_member(m);
    const float weight = members_[m].weight;
    const float* values = members_[m].dense.data();
    if (alignment_->identical()) {
      kernels().axpy(weight, values, out.size(), out.data());
      continue;
    }
    const auto to_token = alignment_->to_token(m);
    for (std::size_t s = 0; s < out.size(); ++s) {
      out[s] += weight * (to_token[s] == kNone ? missing : values[to_token[s]]);
    }
  }
  if (linear) {
    kernels().log(out.data(), out.size(), out.data());
    return;
  }
  for (std::size_t s = 0; s < out.size(); ++s) {
    if (!known(static_cast<std::int32_t>(s))) out[s] = -kInf;
  }
  normalise(out);
}

bool Pool::known(std::int32_t symbol) const {
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (members_[m].row != nullptr && alignment_->twin(m, symbol) != kNone) return true;
  }
  return false;
}

}  // namespace logitfuse
