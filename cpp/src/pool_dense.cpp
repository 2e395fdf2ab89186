// The pool over all symbols at once.
#include <algorithm>
#include <numeric>
#include <string>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "logitfuse/pool.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

void Pool::dense(std::span<float> out) {
  if (out.size() != static_cast<std::size_t>(alignment_->size())) {
    throw FusionError("the dense row has " + std::to_string(alignment_->size()) +
                      " symbols, the output " + std::to_string(out.size()));
  }
  if (adapted()) {
    std::fill(out.begin(), out.end(), -kInf);
    const Fused& fused = candidates(kAll);
    for (std::size_t k = 0; k < fused.size(); ++k) {
      out[static_cast<std::size_t>(fused.symbols[k])] = fused.logprobs[k];
    }
    return;
  }
  if (options_.kind == PoolKind::linear) {
    dense_linear(out);
    return;
  }
  score_all();
  std::copy(fused_.logprobs.begin(), fused_.logprobs.end(), out.begin());
}

const Fused& Pool::whole(std::int32_t n, std::span<const std::int32_t> forced) {
  if (n < 1) throw FusionError("n must be at least 1, not " + std::to_string(n));
  check_symbols(forced);
  if (adapted()) return candidates(kAll, forced);
  score_all();
  const auto before = [this](std::int32_t a, std::int32_t b) { return is_before(a, b); };
  order_possible();
  const auto listed = std::min(static_cast<std::size_t>(n), order_.size());
  const auto ranked = static_cast<std::ptrdiff_t>(std::min(listed + 1, order_.size()));
  std::partial_sort(order_.begin(), order_.begin() + ranked, order_.end(), before);
  if (listed < order_.size()) {
    fused_.outside = fused_.logprobs[static_cast<std::size_t>(order_[listed])];
  }
  const std::int32_t last = order_[listed - 1];
  order_.resize(listed);
  for (const std::int32_t symbol : forced) {
    const bool possible = fused_.logprobs[static_cast<std::size_t>(symbol)] != -kInf;
    if (possible && before(last, symbol)) order_.push_back(symbol);
  }
  std::sort(order_.begin() + static_cast<std::ptrdiff_t>(listed), order_.end(), before);
  order_.erase(std::unique(order_.begin(), order_.end()), order_.end());
  report();
  return sorted_;
}

// Fills fused_ with all symbols, in their order.
void Pool::score_all() {
  const auto size = static_cast<std::size_t>(alignment_->size());
  fused_.symbols.resize(size);
  std::iota(fused_.symbols.begin(), fused_.symbols.end(), 0);
  fused_.member_logprobs.resize(members_.size() * size);
  for (std::size_t m = 0; m < members_.size(); ++m) {
    members_[m].bound = -kInf;
    gather_all(m);
  }
  combine();
}

// As `gather` of all symbols, but in the order of the tokens.
void Pool::gather_all(std::size_t m) {
  Member& member = members_[m];
  const std::size_t n = fused_.size();
  float* out = &fused_.member_logprobs[m * n];
  if (!member.present) {
    std::fill(out, out + n, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  const Vocab& vocab = alignment_->vocab(m);
  member.dense.assign(static_cast<std::size_t>(vocab.size()), -kInf);
  for (const IdRange span : vocab.spans()) {
    for (std::int32_t id = span.begin; id < span.end; ++id) {
      member.dense[static_cast<std::size_t>(id)] =
          static_cast<float>(log_probability(member, member.row[id]));
    }
  }
  for (const std::int32_t shared : vocab.shared()) {
    member.dense[static_cast<std::size_t>(shared)] = token_logprob(member, vocab, shared);
    for (std::int32_t id = vocab.next_same(shared); id != kNone; id = vocab.next_same(id)) {
      member.dense[static_cast<std::size_t>(id)] = -kInf;
    }
  }
  if (alignment_->identical()) {
    std::copy(member.dense.begin(), member.dense.end(), out);
    return;
  }
  const auto to_token = alignment_->to_token(m);
  for (std::size_t s = 0; s < n; ++s) {
    const std::int32_t token = to_token[s];
    const float said = member.dense[static_cast<std::size_t>(std::max(token, 0))];
    out[s] = token == kNone ? -kInf : said;  // no branch: nobody could predict it
  }
}

// In probabilities: no logarithm per member.
void Pool::dense_linear(std::span<float> out) {
  std::fill(out.begin(), out.end(), 0.0F);
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    dense_member(m);
    const auto weight = static_cast<float>(members_[m].weight);
    const float* values = members_[m].dense.data();
    if (alignment_->identical()) {
      kernels().axpy(weight, values, out.size(), out.data());
      continue;
    }
    const auto to_token = alignment_->to_token(m);
    for (std::size_t s = 0; s < out.size(); ++s) {
      out[s] += weight * (to_token[s] == kNone ? 0.0F : values[to_token[s]]);
    }
  }
  kernels().log(out.data(), out.size(), out.data());
}

// member.dense[token] = p(token) for canonical tokens, the tokens of one symbol summed; 0 for all
// others.
void Pool::dense_member(std::size_t m) {
  Member& member = members_[m];
  const Vocab& vocab = alignment_->vocab(m);
  member.dense.assign(static_cast<std::size_t>(vocab.size()), 0.0F);
  const auto scale = static_cast<float>(1.0 / member.sum);
  for (const IdRange span : vocab.spans()) {
    const auto n = static_cast<std::size_t>(span.end - span.begin);
    kernels().exp_shifted(member.row + span.begin, n, member.max, scale,
                          &member.dense[static_cast<std::size_t>(span.begin)]);
  }
  for (const std::int32_t shared : vocab.shared()) {
    member.dense[static_cast<std::size_t>(shared)] = exp_of(token_logprob(member, vocab, shared));
    for (std::int32_t id = vocab.next_same(shared); id != kNone; id = vocab.next_same(id)) {
      member.dense[static_cast<std::size_t>(id)] = 0.0F;
    }
  }
}

}  // namespace logitfuse
