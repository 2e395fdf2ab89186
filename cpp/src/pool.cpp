#include "logitfuse/pool.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kSlack = 1e-6;  // more than float32 differences of probabilities are off by

}  // namespace

Pool::Pool(std::shared_ptr<const Alignment> alignment, PoolOptions options)
    : alignment_(std::move(alignment)), options_(options), formula_(options) {
  seen_.assign(static_cast<std::size_t>(alignment_->size()), 0U);
  members_.resize(alignment_->members());
  for (std::size_t m = 0; m < members_.size(); ++m) {
    Member& member = members_[m];
    constexpr auto kStep = static_cast<std::int32_t>(kBlock);
    for (const IdRange span : alignment_->vocab(m).spans()) {
      for (std::int32_t begin = span.begin; begin < span.end; begin += kStep) {
        member.blocks.push_back({begin, std::min(begin + kStep, span.end)});
      }
    }
    member.block_max.resize(member.blocks.size());
    member.ranked.resize(member.blocks.size());
    member.chosen.resize(member.blocks.size());
  }
}

void Pool::read(std::span<const float* const> rows, std::span<const double> weights,
                std::span<const TokenBits> allowed) {
  const auto count = [this](std::size_t n, const char* what) {
    if (n == members_.size()) return;
    throw FusionError("expected " + std::to_string(members_.size()) + " " + what + ", got " +
                      std::to_string(n));
  };
  count(rows.size(), "rows");
  if (!allowed.empty()) count(allowed.size(), "sets of allowed tokens");
  const double total = check_weights(options_.kind, weights, members_.size());
  for (std::size_t m = 0; m < members_.size(); ++m) {
    members_[m].row = static_cast<float>(weights[m] / total) == 0.0F ? nullptr : rows[m];
    members_[m].log_allowed = 0.0;
    members_[m].allowed.clear();
    if (!allowed.empty()) members_[m].allowed.assign(allowed[m].begin(), allowed[m].end());
  }
  constrained_ = false;
  weigh(weights, total);
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    measure(m);
    if (!members_[m].allowed.empty()) constrain(m);
  }
  if (constrained_) credit();
}

void Pool::reweigh(std::span<const double> weights) {
  weigh(weights, check_weights(options_.kind, weights, members_.size()));
  if (constrained_) credit();
}

void Pool::weigh(std::span<const double> weights, double total) {
  const auto present = [&](std::size_t m) {
    return static_cast<float>(weights[m] / total) != 0.0F;
  };
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (members_[m].row == nullptr && present(m)) {
      throw FusionError("member " + std::to_string(m) + " has a weight but no row",
                        static_cast<int>(m));
    }
  }
  for (std::size_t m = 0; m < members_.size(); ++m) {
    Member& member = members_[m];
    member.weight = weights[m] / total;
    member.present = present(m);
    member.log_weight = member.weight > 0.0 ? static_cast<float>(log_of(member.weight)) : 0.0F;
  }
  scale_ = total;
}

void Pool::measure(std::size_t m) {
  const Member& member = members_[m];
  const auto fail = [m](const char* what) {
    throw FusionError("the row of member " + std::to_string(m) + " " + what, static_cast<int>(m));
  };
  const bool sums = sum_up(m);
  if (member.max == kInf) fail("holds +inf");
  if (!sums) {
    // Nothing but -inf and NaN: tell them apart.
    for (const IdRange span : alignment_->vocab(m).spans()) {
      for (std::int32_t id = span.begin; id < span.end; ++id) {
        if (std::isnan(member.row[id])) fail("holds NaN");
      }
    }
    fail("holds nothing but -inf");
  }
  if (std::isnan(member.sum)) fail("holds NaN");
}

// The maxima of a row and its sum; false: there is no finite maximum.
bool Pool::sum_up(std::size_t m) {
  Member& member = members_[m];
  const auto spans = alignment_->vocab(m).spans();
  const Kernels& k = kernels();
  member.max = -kInf;
  std::size_t block = 0;
  for (const IdRange span : spans) {
    const auto n = static_cast<std::size_t>(span.end - span.begin);
    const float max = k.block_max(member.row + span.begin, n, &member.block_max[block]);
    member.max = std::max(member.max, max);
    block += (n + kBlock - 1) / kBlock;
  }
  if (std::isinf(member.max)) return false;
  member.sum = 0.0;
  for (const IdRange span : spans) {
    const auto n = static_cast<std::size_t>(span.end - span.begin);
    member.sum += k.sum_exp(member.row + span.begin, n, member.max);
  }
  member.log_sum = log_of(member.sum);
  return true;
}

// Puts a copy of the row in its place that has nothing but what is allowed.
void Pool::constrain(std::size_t m) {
  Member& member = members_[m];
  const Vocab& vocab = alignment_->vocab(m);
  member.kept.resize(static_cast<std::size_t>(vocab.size()));
  keep_allowed(vocab, member.allowed, member.row, member.kept.data());
  member.row = member.kept.data();
  constrained_ = true;
  const double max = static_cast<double>(member.max);
  const double log_sum = member.log_sum;
  member.log_allowed = -kInf;
  if (!sum_up(m)) return;
  // The maxima first: their sums with the logarithms would lose these where the logits are huge.
  const double higher = static_cast<double>(member.max) - max;
  member.log_allowed = std::min(higher + (member.log_sum - log_sum), 0.0);
}

// Weighs the members by what they gave to the allowed tokens, where that counts.
void Pool::credit() {
  const bool linear = options_.kind == PoolKind::linear;
  const bool power = options_.kind == PoolKind::power;
  const double exponent = linear ? 1.0 : power ? static_cast<double>(options_.exponent) : 0.0;
  const auto credit_of = [&](const Member& member) {
    return exponent == 0.0 ? 0.0 : exponent * member.log_allowed;
  };
  double most = -kInf;  // relative to it, for the credits may be beyond all numbers
  bool anybody = false;
  for (Member& member : members_) {
    member.present = member.present && member.log_allowed != -kInf;
    if (!member.present) continue;
    most = std::max(most, credit_of(member));
    anybody = anybody || member.weight > 0.0;
  }
  if (!anybody) throw FusionError("no member can say anything that the constraint allows");
  double total = 0.0;
  for (Member& member : members_) {
    if (member.present) member.weight *= exp64_of(credit_of(member) - most);
    if (member.present) total += member.weight;
  }
  if (as_given(options_.kind)) return;
  for (Member& member : members_) {
    if (!member.present) continue;
    member.weight /= total;
    member.present = static_cast<float>(member.weight) != 0.0F;
    member.log_weight = member.present ? static_cast<float>(log_of(member.weight)) : 0.0F;
  }
  scale_ *= total * exp64_of(most);
}

// Not logit - log-sum-exp: that loses the sum where the logits are huge.
double Pool::log_probability(const Member& member, float logit) {
  return static_cast<double>(logit) - static_cast<double>(member.max) - member.log_sum;
}

float Pool::token_logprob(const Member& member, const Vocab& vocab, std::int32_t token) const {
  float logit = member.row[token];
  if (std::int32_t next = vocab.next_same(token); next != kNone) {
    for (std::int32_t id = next; id != kNone; id = vocab.next_same(id)) {
      logit = std::max(logit, member.row[id]);
    }
    if (logit == -kInf) return -kInf;
    double sum = 0.0;
    for (std::int32_t id = token; id != kNone; id = vocab.next_same(id)) {
      sum += kernels().sum_exp(&member.row[id], 1, logit);
    }
    return static_cast<float>(log_probability(member, logit) + log_of(sum));
  }
  return static_cast<float>(log_probability(member, logit));
}

float Pool::logprob(std::size_t m, std::int32_t symbol) const {
  const std::int32_t token = alignment_->twin(m, symbol);
  return token == kNone ? -kInf : token_logprob(members_[m], alignment_->vocab(m), token);
}

std::int32_t Pool::draw(double place) const {
  const Member* drawn = nullptr;
  std::size_t at = 0;
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    if (drawn != nullptr) place -= drawn->weight;
    drawn = &members_[m];
    at = m;
    if (place < drawn->weight) break;
  }
  if (drawn == nullptr) return kNone;
  return alignment_->symbol(at, token_at(*drawn, place / drawn->weight * drawn->sum));
}

// The token where the sum of all exp(logit - max) up to it exceeds `mass`.  Whole blocks are passed
// by their sums.  Behind the last token only by rounding: then it is the last one.
std::int32_t Pool::token_at(const Member& member, double mass) {
  const Kernels& k = kernels();
  Block found{};
  double sum = 0.0;  // of the block found
  for (const Block block : member.blocks) {
    const auto n = static_cast<std::size_t>(block.end - block.begin);
    const double next = k.sum_exp(member.row + block.begin, n, member.max);
    if (next == 0.0) continue;
    mass -= sum;
    found = block;
    sum = next;
    if (mass < sum) break;
  }
  float masses[kBlock];
  const auto n = static_cast<std::size_t>(found.end - found.begin);
  k.exp_shifted(member.row + found.begin, n, member.max, 1.0F, masses);
  std::int32_t token = kNone;
  for (std::size_t i = 0; i < n; ++i) {
    if (masses[i] == 0.0F) continue;
    token = found.begin + static_cast<std::int32_t>(i);
    mass -= static_cast<double>(masses[i]);
    if (mass < 0.0) break;
  }
  return token;
}

std::int32_t Pool::best(std::size_t m) const {
  const Member& member = members_[m];
  if (!member.present) return kNone;
  const Vocab& vocab = alignment_->vocab(m);
  const auto block = std::find(member.block_max.begin(), member.block_max.end(), member.max);
  std::int32_t best =
      member.blocks[static_cast<std::size_t>(block - member.block_max.begin())].begin;
  while (member.row[best] != member.max) ++best;
  std::int32_t symbol = vocab.canonical(best);
  float highest = token_logprob(member, vocab, symbol);
  // Many small tokens can beat one large one.
  for (const std::int32_t shared : vocab.shared()) {
    float bound = -kInf;  // log(e^a + e^b) < max(a, b) + 1: rules out nearly all at once
    for (std::int32_t id = shared; id != kNone; id = vocab.next_same(id)) {
      bound = std::max(bound, member.row[id]) + 1.0F;
    }
    if (bound < member.max) continue;
    const float sum = token_logprob(member, vocab, shared);
    if (sum > highest) {
      highest = sum;
      symbol = shared;
    }
  }
  return alignment_->symbol(m, symbol);
}

// All formulas but the two that are left out grow with what any member says.
Decision Pool::decide(std::int32_t& symbol) const {
  symbol = kNone;
  if (adapted() || options_.kind == PoolKind::contrast || options_.kind == PoolKind::consistency) {
    return Decision::open;
  }
  bool agree = true;
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    const std::int32_t wish = best(m);
    if (symbol == kNone) symbol = wish;
    agree = agree && wish == symbol;
    // Under a high floor a symbol that the member lacks may please it more than its best.
    if (formula_.missing() == Missing::floor) agree = agree && logprob(m, wish) >= options_.floor;
  }
  if (agree) return Decision::agree;
  if (options_.kind != PoolKind::linear) return symbol = kNone, Decision::open;
  // More than half of the pool means more than half of some member: it is that member's best.
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    symbol = best(m);
    float pooled = 0.0F;
    for (std::size_t j = 0; j < members_.size(); ++j) {
      if (!members_[j].present) continue;
      pooled += exp_of(logprob(j, symbol), static_cast<float>(members_[j].weight));
    }
    if (pooled > 0.5F) return Decision::certain;
  }
  symbol = kNone;
  return Decision::open;
}

std::int32_t Pool::certain_without(double rest_weight) {
  if (!(rest_weight >= 0.0) || std::isinf(rest_weight)) {
    throw FusionError("the weight of absent members must be a finite number >= 0, not " +
                      std::to_string(rest_weight));
  }
  if (options_.kind != PoolKind::linear || adapted()) return kNone;
  const double rest = rest_weight / scale_ + kSlack;
  for (std::int32_t top = 8;; top = top < kAll / 8 ? top * 8 : kAll) {
    const Fused& fused = candidates(top);
    const float second = fused.size() > 1 ? fused.logprobs[1] : -kInf;
    const double best = static_cast<double>(exp_of(fused.logprobs[0]));
    const double lead = best - static_cast<double>(exp_of(std::max(second, fused.outside)));
    if (lead > rest) return fused.symbols[0];
    // Longer lists cannot raise the lead above that over the second here.
    const bool known = fused.logprobs[0] >= fused.outside;
    if (known && best - static_cast<double>(exp_of(second)) <= rest) return kNone;
    if (top == kAll || second >= fused.outside) return kNone;
  }
}

}  // namespace logitfuse
