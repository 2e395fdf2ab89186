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
constexpr double kSlack = 1e-6;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// bound - log_z so that it also holds for what float32 operations make of both (checked in
// tests/python/test_fuse.py): each loses a few 2^-24, relative to what it adds and absolute.
float rounded_up(double bound, double log_z, double slack) {
  if (std::isinf(bound)) return static_cast<float>(bound);
  return static_cast<float>(bound - log_z + slack * (1.0 + std::abs(bound) + std::abs(log_z)));
}

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

void Pool::read(std::span<const float* const> rows, std::span<const double> weights) {
  if (rows.size() != members_.size()) {
    throw FusionError("expected " + std::to_string(members_.size()) + " rows, got " +
                      std::to_string(rows.size()));
  }
  const double total = check_weights(options_.kind, weights, members_.size());
  for (std::size_t m = 0; m < members_.size(); ++m) {
    members_[m].row = static_cast<float>(weights[m] / total) == 0.0F ? nullptr : rows[m];
  }
  weigh(weights, total);
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (members_[m].present) measure(m);
  }
}

void Pool::reweigh(std::span<const double> weights) {
  weigh(weights, check_weights(options_.kind, weights, members_.size()));
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
  const auto fail = [m](const char* what) {
    throw FusionError("the row of member " + std::to_string(m) + " " + what, static_cast<int>(m));
  };
  if (member.max == kInf) fail("holds +inf");
  member.sum = 0.0;
  if (member.max != -kInf) {
    for (const IdRange span : spans) {
      const auto n = static_cast<std::size_t>(span.end - span.begin);
      member.sum += k.sum_exp(member.row + span.begin, n, member.max);
    }
  } else {
    // Nothing but -inf and NaN: tell them apart.
    for (const IdRange span : spans) {
      for (std::int32_t id = span.begin; id < span.end; ++id) {
        if (std::isnan(member.row[id])) fail("holds NaN");
      }
    }
    fail("holds nothing but -inf");
  }
  if (std::isnan(member.sum)) fail("holds NaN");
  member.log_sum = log_of(member.sum);
}

// With the blocks dealt out to groups, the `top`-th largest maximum of a group is a threshold that
// at least `top` tokens reach, so all of the `top` best tokens reach it, and they lie in the few
// blocks whose maximum does.  (To rank the blocks themselves would save few blocks and take longer
// than all the rest.  Neighbours go to different groups because likely tokens are neighbours.)
void Pool::select(std::size_t m, std::int32_t top) {
  constexpr std::size_t kGroupsPerToken = 4;  // an eighth more blocks than by ranking blocks
  Member& member = members_[m];
  const auto wanted = static_cast<std::size_t>(top);
  const std::size_t blocks = member.blocks.size();
  float threshold = -kInf;
  if (wanted < blocks) {
    const std::size_t groups = std::min(kGroupsPerToken * wanted, blocks);
    float* ranked = member.ranked.data();
    std::copy_n(member.block_max.data(), groups, ranked);
    for (std::size_t dealt = groups; dealt < blocks; dealt += groups) {
      const float* more = &member.block_max[dealt];
      const std::size_t n = std::min(groups, blocks - dealt);
      for (std::size_t g = 0; g < n; ++g) ranked[g] = std::max(ranked[g], more[g]);
    }
    std::nth_element(ranked, ranked + wanted - 1, ranked + groups, std::greater<>());
    threshold = ranked[wanted - 1];
  }
  member.best.clear();
  const Kernels& k = kernels();
  const std::size_t n_chosen =
      k.at_least(member.block_max.data(), blocks, threshold, member.chosen.data());
  for (std::size_t c = 0; c < n_chosen; ++c) {
    const Block block = member.blocks[static_cast<std::size_t>(member.chosen[c])];
    const float* logits = member.row + block.begin;
    std::int32_t at[kBlock];
    const auto size = static_cast<std::size_t>(block.end - block.begin);
    const std::size_t found = k.at_least(logits, size, threshold, at);
    for (std::size_t i = 0; i < found; ++i) {
      if (logits[at[i]] != -kInf) member.best.push_back({logits[at[i]], block.begin + at[i]});
    }
  }
  if (member.best.size() > wanted) {
    const auto nth = member.best.begin() + static_cast<std::ptrdiff_t>(wanted) - 1;
    std::nth_element(member.best.begin(), nth, member.best.end(),
                     [](const Entry& a, const Entry& b) {
                       return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
                     });
    threshold = nth->logit;
    member.best.resize(wanted);
  }
  // A symbol outside may be spelled by several tokens of the threshold's size.
  const std::int32_t equal = alignment_->vocab(m).most_equal();
  const double bound = log_probability(member, threshold) + log_of(equal);
  member.bound = static_cast<float>(std::min(bound, 0.0));
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
  if (options_.kind == PoolKind::contrast || options_.kind == PoolKind::consistency) {
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
  if (options_.kind != PoolKind::linear) return kNone;
  const double rest = rest_weight / scale_ + kSlack;  // float32 differences are off by less
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

void Pool::add_candidate(std::int32_t symbol) {
  std::uint32_t& seen = seen_[static_cast<std::size_t>(symbol)];
  if (seen == step_) return;
  seen = step_;
  fused_.symbols.push_back(symbol);
}

const Fused& Pool::candidates(std::int32_t top, std::span<const std::int32_t> forced) {
  if (top < 1) throw FusionError("top must be at least 1, not " + std::to_string(top));
  if (++step_ == 0) {  // the counter wrapped: old marks could look new
    std::fill(seen_.begin(), seen_.end(), 0U);
    step_ = 1;
  }
  fused_.symbols.clear();
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    select(m, top);
    for (const Entry& entry : members_[m].best) add_candidate(alignment_->symbol(m, entry.id));
  }
  if (options_.kind == PoolKind::contrast) add_candidate(best(base()));
  if (alignment_->end() != kNone) add_candidate(alignment_->end());
  for (const std::int32_t symbol : forced) {
    if (symbol < 0 || symbol >= alignment_->size()) {
      throw FusionError("symbol " + std::to_string(symbol) + " is not in a union of " +
                        std::to_string(alignment_->size()));
    }
    add_candidate(symbol);
  }
  fused_.member_logprobs.resize(members_.size() * fused_.size());
  for (std::size_t m = 0; m < members_.size(); ++m) gather(m);
  combine();
  sort();
  return sorted_;
}

const Fused& Pool::score(std::int32_t symbol) {
  fused_.symbols.assign(1, symbol);
  fused_.member_logprobs.resize(members_.size());
  for (std::size_t m = 0; m < members_.size(); ++m) {
    members_[m].bound = 0.0F;
    gather(m);
  }
  combine();
  sort();
  return sorted_;
}

void Pool::gather(std::size_t m) {
  const std::size_t n = fused_.size();
  float* out = &fused_.member_logprobs[m * n];
  if (!members_[m].present) {
    std::fill(out, out + n, kNaN);
    return;
  }
  for (std::size_t k = 0; k < n; ++k) out[k] = logprob(m, fused_.symbols[k]);
}

// The first member of positive weight: the base of a contrast.
std::size_t Pool::base() const {
  std::size_t m = 0;
  while (!members_[m].present || members_[m].weight < 0.0) ++m;
  return m;
}

void Pool::combine() {
  const std::size_t n = fused_.size();
  const bool fills = formula_.missing() != Missing::zero;
  if (fills) fill_missing();
  votes_.clear();
  bounds_.clear();
  for (std::size_t m = 0; m < members_.size(); ++m) {
    const Member& member = members_[m];
    if (!member.present) continue;
    const float* logprobs = (fills ? filled_ : fused_.member_logprobs).data() + m * n;
    votes_.push_back({logprobs, member.weight, member.log_weight});
    bounds_.push_back(member.bound);
  }
  fused_.logprobs.resize(n);
  formula_.score(votes_, n, fused_.logprobs.data());
  const auto bound = static_cast<double>(formula_.bound(votes_, bounds_));
  if (options_.kind == PoolKind::linear) {
    for (float& logprob : fused_.logprobs) logprob = std::min(logprob, 0.0F);
    fused_.outside = std::min(rounded_up(bound, 0.0, kSlack), 0.0F);
    fused_.partial = false;
    return;
  }
  // The root of the power mean magnifies what its sum loses.
  const auto r = static_cast<double>(std::abs(options_.exponent));
  const double slack = options_.kind == PoolKind::power ? kSlack * std::max(1.0, 1.0 / r) : kSlack;
  fused_.outside = rounded_up(bound, normalise(fused_.logprobs), slack);
  fused_.partial = fused_.outside != -kInf;
}

// Where a member has no twin the formula is given what stands for it; -inf where nobody has one.
void Pool::fill_missing() {
  const std::size_t n = fused_.size();
  filled_ = fused_.member_logprobs;
  const float* base_row =
      formula_.missing() == Missing::base ? &fused_.member_logprobs[base() * n] : nullptr;
  known_.assign(n, 0);
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    const float* lp = &fused_.member_logprobs[m * n];
    for (std::size_t k = 0; k < n; ++k) known_[k] = known_[k] != 0 || lp[k] != -kInf;
  }
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    float* lp = &filled_[m * n];
    for (std::size_t k = 0; k < n; ++k) {
      if (lp[k] != -kInf || known_[k] == 0) continue;
      if (alignment_->twin(m, fused_.symbols[k]) != kNone) continue;
      lp[k] = base_row == nullptr ? options_.floor : base_row[k];
    }
  }
}

void Pool::sort() {
  const std::size_t n = fused_.size();
  order_.clear();
  for (std::size_t k = 0; k < n; ++k) {
    if (fused_.logprobs[k] != -kInf) order_.push_back(static_cast<std::int32_t>(k));
  }
  std::sort(order_.begin(), order_.end(), [this](std::int32_t a, std::int32_t b) {
    const auto i = static_cast<std::size_t>(a);
    const auto j = static_cast<std::size_t>(b);
    if (fused_.logprobs[i] != fused_.logprobs[j]) return fused_.logprobs[i] > fused_.logprobs[j];
    return fused_.symbols[i] < fused_.symbols[j];
  });
  const std::size_t kept = order_.size();
  sorted_.symbols.resize(kept);
  sorted_.logprobs.resize(kept);
  sorted_.member_logprobs.resize(members_.size() * kept);
  sorted_.outside = fused_.outside;
  sorted_.partial = fused_.partial;
  for (std::size_t k = 0; k < kept; ++k) {
    const auto from = static_cast<std::size_t>(order_[k]);
    sorted_.symbols[k] = fused_.symbols[from];
    sorted_.logprobs[k] = fused_.logprobs[from];
    for (std::size_t m = 0; m < members_.size(); ++m) {
      sorted_.member_logprobs[m * kept + k] = fused_.member_logprobs[m * n + from];
    }
  }
}

}  // namespace logitfuse
