// From the rows of a step to its best symbols.
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "logitfuse/pool.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kSlack = 1e-6;

// bound - log_z so that it also holds for what float32 operations make of both (checked in
// tests/python/test_fuse.py): each loses a few 2^-24, relative to what it adds and absolute.
float rounded_up(double bound, double log_z, double slack) {
  if (std::isinf(bound)) return static_cast<float>(bound);
  return static_cast<float>(bound - log_z + slack * (1.0 + std::abs(bound) + std::abs(log_z)));
}

}  // namespace

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

void Pool::add_candidate(std::int32_t symbol) {
  std::uint32_t& seen = seen_[static_cast<std::size_t>(symbol)];
  if (seen == step_) return;
  if (pivot_ != kNone) {
    const auto pivot = static_cast<std::size_t>(pivot_);
    const std::int32_t said = alignment_->twin(pivot, symbol);
    const TokenBits allowed = members_[pivot].allowed;
    if (said == kNone || !(allowed.empty() || may_come(allowed, said))) return;
  }
  seen = step_;
  if (projects_)
    place_[static_cast<std::size_t>(symbol)] = static_cast<std::int32_t>(fused_.size());
  fused_.symbols.push_back(symbol);
}

void Pool::check_symbols(std::span<const std::int32_t> symbols) const {
  for (const std::int32_t symbol : symbols) {
    if (symbol < 0 || symbol >= alignment_->size()) {
      throw FusionError("symbol " + std::to_string(symbol) + " is not in a union of " +
                        std::to_string(alignment_->size()));
    }
  }
}

const Fused& Pool::candidates(std::int32_t top, std::span<const std::int32_t> forced) {
  if (top < 1) throw FusionError("top must be at least 1, not " + std::to_string(top));
  check_symbols(forced);
  if (++step_ == 0) {  // the counter wrapped: old marks could look new
    std::fill(seen_.begin(), seen_.end(), 0U);
    step_ = 1;
  }
  if (options_.union_top > 0) top = options_.union_top;
  fused_.symbols.clear();
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    select(m, top);
    for (const Entry& entry : members_[m].best) add_candidate(alignment_->symbol(m, entry.id));
    add_targets(m);
  }
  if (options_.kind == PoolKind::contrast && options_.union_top == 0) add_candidate(best(base()));
  if (alignment_->end() != kNone) add_candidate(alignment_->end());
  for (const std::int32_t symbol : forced) add_candidate(symbol);
  fused_.member_logprobs.resize(members_.size() * fused_.size());
  for (std::size_t m = 0; m < members_.size(); ++m) {
    gather(m);
    add_projected(m);
  }
  if (pivot_ != kNone && top != kAll) {
    // The best tokens may all be such as the pivot lacks.
    const auto& said = fused_.member_logprobs;
    if (std::none_of(said.begin(), said.end(), [](float lp) { return lp > -kInf; })) {
      return candidates(top < kAll / 8 ? top * 8 : kAll, forced);
    }
  }
  combine();
  sort();
  return sorted_;
}

// Tokens of one symbol are summed, so the best tokens need not hold the best symbols: more of them
// are looked at until no other symbol can be better.
std::vector<Own> Pool::best_of(std::size_t m, std::int32_t n) {
  std::vector<Own> own;
  if (n < 1 || !members_[m].present) return own;
  const Member& member = members_[m];
  const std::int32_t first = best(m);
  const auto wanted = static_cast<std::size_t>(n);
  for (std::int32_t top = n;; top = top < kAll / 8 ? top * 8 : kAll) {
    select(m, top);
    own.clear();
    const auto add = [&](std::int32_t symbol) { own.push_back({symbol, logprob(m, symbol)}); };
    for (const Entry& entry : member.best) add(alignment_->symbol(m, entry.id));
    add(first);
    if (alignment_->end() != kNone) add(alignment_->end());
    std::erase_if(own, [](const Own& a) { return a.logprob == -kInf; });
    std::sort(own.begin(), own.end(), [first](const Own& a, const Own& b) {
      if (a.logprob != b.logprob) return a.logprob > b.logprob;
      if ((a.symbol == first) != (b.symbol == first)) return a.symbol == first;
      return a.symbol < b.symbol;
    });
    const auto same = [](const Own& a, const Own& b) { return a.symbol == b.symbol; };
    own.erase(std::unique(own.begin(), own.end(), same), own.end());
    const bool enough = own.size() >= wanted && own[wanted - 1].logprob >= member.bound;
    if (!enough && member.bound != -kInf) continue;
    if (own.size() > wanted) own.resize(wanted);
    return own;
  }
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
  if (fills()) {
    filled_ = fused_.member_logprobs;
    if (options_.union_top > 0) back_off();
    if (formula_.missing() != Missing::zero) fill_missing();
  }
  votes_.clear();
  bounds_.clear();
  for (std::size_t m = 0; m < members_.size(); ++m) {
    const Member& member = members_[m];
    if (!member.present) continue;
    const float* logprobs = (fills() ? filled_ : fused_.member_logprobs).data() + m * n;
    votes_.push_back({logprobs, member.weight, member.log_weight});
    bounds_.push_back(options_.union_top > 0 ? -kInf : member.bound);
  }
  fused_.logprobs.resize(n);
  formula_.score(votes_, n, fused_.logprobs.data());
  const auto bound = static_cast<double>(formula_.bound(votes_, bounds_));
  if (options_.kind == PoolKind::linear && !projects_ && pivot_ == kNone) {
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

// Where a member has no token the formula is given what stands for it; -inf where nobody has one.
void Pool::fill_missing() {
  const bool backs_off = options_.union_top > 0;
  if (!backs_off && alignment_->identical()) return;  // nobody lacks what others have
  const std::size_t n = fused_.size();
  known_.assign(n, -kInf);
  float* known = known_.data();
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    const float* lp = &filled_[m * n];
    for (std::size_t k = 0; k < n; ++k) known[k] = std::max(known[k], lp[k]);
  }
  const float* base_row = formula_.missing() == Missing::base ? &filled_[base() * n] : nullptr;
  const std::int32_t* symbols = fused_.symbols.data();
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    float* lp = &filled_[m * n];
    const std::int32_t* tokens = backs_off ? &spelled_[m * n] : alignment_->to_token(m).data();
    for (std::size_t k = 0; k < n; ++k) {
      const std::int32_t token = tokens[backs_off ? k : static_cast<std::size_t>(symbols[k])];
      // No short cut: over all symbols it is anyone's guess, and a wrong one costs more.
      const bool lacks = (token == kNone) & (known[k] != -kInf) & (lp[k] == -kInf);
      const float stand_in = base_row == nullptr ? options_.floor : base_row[k];
      lp[k] = lacks ? stand_in : lp[k];
    }
  }
}

// Whether one entry of fused_ is listed before another.
bool Pool::is_before(std::int32_t a, std::int32_t b) const {
  const auto i = static_cast<std::size_t>(a);
  const auto j = static_cast<std::size_t>(b);
  if (fused_.logprobs[i] != fused_.logprobs[j]) return fused_.logprobs[i] > fused_.logprobs[j];
  return fused_.symbols[i] < fused_.symbols[j];
}

// The entries of fused_ that are not excluded, as they come.
void Pool::order_possible() {
  order_.clear();
  for (std::size_t k = 0; k < fused_.logprobs.size(); ++k) {
    if (fused_.logprobs[k] != -kInf) order_.push_back(static_cast<std::int32_t>(k));
  }
}

void Pool::sort() {
  order_possible();
  std::sort(order_.begin(), order_.end(),
            [this](std::int32_t a, std::int32_t b) { return is_before(a, b); });
  report();
}

// Fills sorted_ with what order_ names.
void Pool::report() {
  const std::size_t n = fused_.size();
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
