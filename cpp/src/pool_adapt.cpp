// What makes members speak of symbols that they cannot spell: projections, and backing off.
#include <algorithm>
#include <cmath>
#include <string>

#include "logitfuse/error.hpp"
#include "logitfuse/pool.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

[[noreturn]] void refuse(std::size_t member, const std::string& what) {
  throw FusionError("the projection of member " + std::to_string(member) + " " + what,
                    static_cast<int>(member));
}

}  // namespace

void Pool::restrict_to(std::int32_t pivot) {
  if (options_.union_top > 0) throw FusionError("a pool with union_top takes no pivot");
  if (pivot != kNone && (pivot < 0 || static_cast<std::size_t>(pivot) >= members_.size())) {
    throw FusionError("there are " + std::to_string(members_.size()) + " members; the pivot is " +
                      std::to_string(pivot));
  }
  pivot_ = pivot;
}

void Pool::project(std::size_t m, std::vector<std::int64_t> offsets,
                   std::vector<std::int32_t> symbols, std::span<const float> weights) {
  if (options_.union_top > 0) throw FusionError("a pool with union_top takes no projections");
  if (m >= members_.size()) {
    throw FusionError("there are " + std::to_string(members_.size()) +
                      " members; the projection is of " + std::to_string(m));
  }
  const auto n_tokens = static_cast<std::size_t>(alignment_->vocab(m).size());
  if (offsets.size() != n_tokens + 1 || offsets.front() != 0 ||
      !std::is_sorted(offsets.begin(), offsets.end())) {
    refuse(m, "needs ascending offsets from 0 for " + std::to_string(n_tokens) + " tokens");
  }
  if (static_cast<std::size_t>(offsets.back()) != symbols.size() ||
      symbols.size() != weights.size()) {
    refuse(m, "has " + std::to_string(offsets.back()) + " entries, " +
                  std::to_string(symbols.size()) + " symbols and " +
                  std::to_string(weights.size()) + " weights");
  }
  Projection projection;
  for (std::size_t t = 0; t < n_tokens; ++t) {
    double sum = 0.0;
    for (auto j = static_cast<std::size_t>(offsets[t]);
         j < static_cast<std::size_t>(offsets[t + 1]); ++j) {
      const bool known = symbols[j] >= 0 && symbols[j] < alignment_->size();
      // Where all vocabularies are one, some numbers stand for nothing.
      if (!known || (alignment_->identical() && alignment_->twin(0, symbols[j]) == kNone)) {
        refuse(m, "names symbol " + std::to_string(symbols[j]) + ", not in a union of " +
                      std::to_string(alignment_->size()));
      }
      if (!(weights[j] >= 0.0F)) refuse(m, "has the weight " + std::to_string(weights[j]));
      const auto weight = static_cast<double>(weights[j]);
      projection.log_weights.push_back(log_of(weight));
      projection.most = std::max(projection.most, weight);
      sum += weight;
    }
    if (!(sum <= 1.0 + 1e-3)) {  // float32 weights add up to no better
      refuse(m, "gives token " + std::to_string(t) + " weights of " + std::to_string(sum) +
                    " together; 1 is the most");
    }
  }
  projection.offsets = std::move(offsets);
  projection.symbols = std::move(symbols);
  members_[m].projection = std::move(projection);
  place_.resize(static_cast<std::size_t>(alignment_->size()));
  projects_ = true;
}

void Pool::add_targets(std::size_t m) {
  const Projection& projection = members_[m].projection;
  if (projection.offsets.empty()) return;
  for (const Entry& entry : members_[m].best) {
    const auto t = static_cast<std::size_t>(entry.id);
    for (std::int64_t j = projection.offsets[t]; j < projection.offsets[t + 1]; ++j) {
      add_candidate(projection.symbols[static_cast<std::size_t>(j)]);
    }
  }
}

void Pool::add_projected(std::size_t m) {
  Member& member = members_[m];
  const Projection& projection = member.projection;
  if (!member.present || projection.offsets.empty()) return;
  mass_.assign(fused_.size(), -kInf);
  double listed = 0.0;
  for (const Entry& entry : member.best) {
    const double logprob = log_probability(member, entry.logit);
    listed += static_cast<double>(exp_of(static_cast<float>(std::min(logprob, 0.0))));
    const auto t = static_cast<std::size_t>(entry.id);
    for (auto j = static_cast<std::size_t>(projection.offsets[t]);
         j < static_cast<std::size_t>(projection.offsets[t + 1]); ++j) {
      const auto symbol = static_cast<std::size_t>(projection.symbols[j]);
      if (seen_[symbol] != step_) continue;  // the pivot lacks it
      double& mass = mass_[static_cast<std::size_t>(place_[symbol])];
      mass = log_add(mass, logprob + projection.log_weights[j]);
    }
  }
  float* out = &fused_.member_logprobs[m * fused_.size()];
  for (std::size_t k = 0; k < fused_.size(); ++k) {
    if (mass_[k] == -kInf) continue;
    out[k] = static_cast<float>(std::min(log_add(static_cast<double>(out[k]), mass_[k]), 0.0));
  }
  if (member.bound == -std::numeric_limits<float>::infinity()) return;  // all tokens are listed
  // Whatever the other tokens have may fall upon one symbol.  Float32 sums are off by less than the
  // last term.
  const double rest = projection.most * (std::max(1.0 - listed, 0.0) + 1e-6);
  const double bound = log_add(static_cast<double>(member.bound), log_of(rest));
  member.bound = static_cast<float>(std::min(bound, 0.0));
}

std::int32_t Pool::longest_prefix(std::size_t m, std::int32_t symbol) const {
  const std::string_view bytes = alignment_->bytes(symbol);
  for (std::size_t size = bytes.size(); size-- > 1;) {
    const std::int32_t token = alignment_->vocab(m).lookup(bytes.substr(0, size));
    if (token != kNone) return token;
  }
  return kNone;
}

// Rewrites `filled_` as the members' distributions on the union.
void Pool::back_off() {
  const std::size_t n = fused_.size();
  spelled_.assign(members_.size() * n, kNone);
  for (std::size_t m = 0; m < members_.size(); ++m) {
    if (!members_[m].present) continue;
    for (std::size_t k = 0; k < n; ++k) {
      const std::int32_t twin = alignment_->twin(m, fused_.symbols[k]);
      spelled_[m * n + k] = twin != kNone ? twin : longest_prefix(m, fused_.symbols[k]);
    }
    share(m);
    float* row = &filled_[m * n];
    if (*std::max_element(row, row + n) != -std::numeric_limits<float>::infinity()) {
      normalise({row, n});
    }
  }
}

// Deals out what each token has among the candidates that it stands for.
void Pool::share(std::size_t m) {
  const std::size_t n = fused_.size();
  const std::int32_t* token = &spelled_[m * n];
  float* row = &filled_[m * n];
  order_.clear();
  for (std::size_t k = 0; k < n; ++k) {
    if (token[k] != kNone) order_.push_back(static_cast<std::int32_t>(k));
  }
  const auto token_of = [token](std::int32_t k) { return token[static_cast<std::size_t>(k)]; };
  std::sort(order_.begin(), order_.end(), [&](std::int32_t a, std::int32_t b) {
    return token_of(a) != token_of(b) ? token_of(a) < token_of(b) : a < b;
  });
  mass_.resize(n);
  for (auto begin = order_.begin(); begin != order_.end();) {
    const std::int32_t shared = token_of(*begin);
    const auto end =
        std::find_if(begin, order_.end(), [&](std::int32_t k) { return token_of(k) != shared; });
    const float logprob = token_logprob(members_[m], alignment_->vocab(m), shared);
    double total = -kInf;
    for (auto at = begin; at != end; ++at) {
      const auto k = static_cast<std::size_t>(*at);
      mass_[k] = mean_of_others(m, k);
      total = log_add(total, mass_[k]);
    }
    for (auto at = begin; at != end && total != -kInf; ++at) {
      const auto k = static_cast<std::size_t>(*at);
      const double mine = std::min(mass_[k] - total, 0.0);
      row[k] = static_cast<float>(static_cast<double>(logprob) + mine);
    }
    begin = end;
  }
}

// Log of the mean probability that those others give a candidate who have a twin of it.
double Pool::mean_of_others(std::size_t m, std::size_t k) const {
  double sum = -kInf;
  int others = 0;
  for (std::size_t j = 0; j < members_.size(); ++j) {
    if (j == m || !members_[j].present) continue;
    if (alignment_->twin(j, fused_.symbols[k]) == kNone) continue;
    sum = log_add(sum, static_cast<double>(fused_.member_logprobs[j * fused_.size() + k]));
    ++others;
  }
  // -inf unless it is the member's own.
  if (others == 0) return static_cast<double>(fused_.member_logprobs[m * fused_.size() + k]);
  return sum - log_of(others);
}

}  // namespace logitfuse
