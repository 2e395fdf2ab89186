// The pooled belief in what follows one node of a unit search.
#include <algorithm>
#include <limits>

#include "logitfuse/unit_search.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

const UnitSearch::Outcomes& UnitSearch::may_follow(std::string_view tail) {
  const auto found = may_follow_.find(tail);
  if (found != may_follow_.end()) return found->second;
  Outcomes outcomes{};
  for (std::size_t b = 0; b < kByteEnd; ++b) {
    const char byte = static_cast<char>(b);
    outcomes[b] = continues_utf8(tail, {&byte, 1});
  }
  return may_follow_.emplace(std::string(tail), outcomes).first->second;
}

UnitSearch::Outcomes UnitSearch::allowed(std::int32_t at) {
  const std::string text = text_.pending + spell(at);
  const std::string_view tail = std::string_view(text).substr(text.size() - unfinished_utf8(text));
  Outcomes allowed = may_follow(tail);
  allowed[kByteEnd] = at == 0 && text_.may_end && tail.empty();
  if (at != 0) return allowed;
  for (const std::int32_t outcome : text_.excluded) {
    allowed[static_cast<std::size_t>(outcome)] = false;
  }
  return allowed;
}

// The mass of a member's paths that end at a node and do not get a row at once.
double UnitSearch::waiting(const Node& node, std::int32_t member) const {
  const ByteBeam& beam = *beams_[static_cast<std::size_t>(member)];
  if (node.parent == kNone) return beam.waiting();
  double mass = 0.0;
  for (std::int32_t p = node.first_place; p < node.first_place + node.n_places; ++p) {
    const Place place = places_[static_cast<std::size_t>(p)];
    if (place.member != member) continue;
    const auto& hypothesis = beam.hypotheses()[static_cast<std::size_t>(place.hypothesis)];
    mass += hypothesis.share * beam.exact_mass(hypothesis, place.at);
  }
  return mass;
}

// Fills conditional_: every member's belief in the next outcome behind a node.
void UnitSearch::ask(std::int32_t at, const Outcomes& allowed) {
  const Node& node = nodes_[static_cast<std::size_t>(at)];
  for (auto& conditional : conditional_) std::fill(conditional.begin(), conditional.end(), 0.0);
  for (std::int32_t p = node.first_place; p < node.first_place + node.n_places; ++p) {
    const Place place = places_[static_cast<std::size_t>(p)];
    const ByteBeam& beam = *beams_[static_cast<std::size_t>(place.member)];
    const auto& hypothesis = beam.hypotheses()[static_cast<std::size_t>(place.hypothesis)];
    auto& conditional = conditional_[static_cast<std::size_t>(place.member)];
    const ByteTrie::Node& trie = beam.trie().node(place.at);
    for (std::int32_t c = trie.first_child; c < trie.first_child + trie.n_children; ++c) {
      conditional[beam.trie().node(c).byte] += hypothesis.share * beam.mass(hypothesis, c);
    }
    if (place.at == ByteTrie::kRoot) conditional[kByteEnd] += hypothesis.share * hypothesis.end;
  }
  for (std::size_t m = 0; m < beams_.size(); ++m) {
    if (weights_[m] == 0.0) continue;
    auto& conditional = conditional_[m];
    conditional[kWaiting] = waiting(node, static_cast<std::int32_t>(m));
    double total = 0.0;
    for (std::size_t b = 0; b < kOutcomes; ++b) {
      if (b < kByteOutcomes && !allowed[b]) conditional[b] = 0.0;
      total += conditional[b];
    }
    if (total <= 0.0) continue;
    for (double& value : conditional) value /= total;
  }
}

// Fills outcome_ by the linear pool.
void UnitSearch::mix(std::int32_t at) {
  std::vector<double> weights(weights_);
  if (rule_.gate) ask_gate(weights);
  for (std::size_t m = 0; m < beams_.size(); ++m) {
    if (rule_.per == PoolUnit::unit) {
      weights[m] *= masses_[static_cast<std::size_t>(at) * beams_.size() + m];
    }
    if (weights[m] == 0.0) continue;
    for (std::size_t b = 0; b < kOutcomes; ++b) outcome_[b] += weights[m] * conditional_[m][b];
  }
  double total = 0.0;  // less than 1 where members cannot go on from here
  for (const double value : outcome_) total += value;
  if (total <= 0.0) return;
  for (double& value : outcome_) value /= total;
}

// The members' weights by how sure they are of the next byte.
void UnitSearch::ask_gate(std::span<double> weights) {
  std::vector<const float*> rows(beams_.size(), nullptr);
  for (std::size_t m = 0; m < beams_.size(); ++m) {
    float* row = &logs_[m * kOutcomes];
    double spelled = 0.0;
    for (std::size_t b = 0; b < kByteOutcomes; ++b) spelled += conditional_[m][b];
    if (weights[m] == 0.0 || spelled <= 0.0) continue;
    for (std::size_t b = 0; b < kByteOutcomes; ++b) {
      row[b] = static_cast<float>(log_of(conditional_[m][b] / spelled));
    }
    rows[m] = row;
  }
  if (std::all_of(rows.begin(), rows.end(), [](const float* row) { return row == nullptr; }))
    return;
  rule_.gate->weights(rows, text_.history, weights);
}

// Fills outcome_ by any other pool.
void UnitSearch::pool() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  bool present = false;
  std::vector<bool> possible(kOutcomes, false);
  for (const auto& conditional : conditional_) {
    for (std::size_t b = 0; b < kOutcomes; ++b) possible[b] = possible[b] || conditional[b] > 0.0;
  }
  const float floor = rule_.pool.floor;
  for (std::size_t m = 0; m < beams_.size(); ++m) {
    const auto& conditional = conditional_[m];
    const bool speaks = weights_[m] != 0.0 && std::any_of(conditional.begin(), conditional.end(),
                                                          [](double p) { return p > 0.0; });
    present = present || (speaks && weights_[m] > 0.0);
    for (std::size_t b = 0; b < kOutcomes; ++b) {
      const auto log = static_cast<float>(std::min(log_of(conditional[b]), 0.0));
      const float said = possible[b] ? std::max(log, floor) : -kInf;
      logs_[m * kOutcomes + b] = speaks ? said : nan;
    }
  }
  if (!present) return;
  combine(rule_.pool, weights_, logs_, pooled_);
  for (std::size_t b = 0; b < kOutcomes; ++b) {
    outcome_[b] = static_cast<double>(exp_of(pooled_[b]));
  }
}

// All that only the waiting paths may spell becomes one outcome.
void UnitSearch::gather_unspelled() {
  if (outcome_[kWaiting] == 0.0) return;
  const double least = kSpelled * outcome_[kWaiting];
  for (std::size_t b = 0; b < kByteOutcomes; ++b) {
    if (outcome_[b] >= least) continue;
    outcome_[kWaiting] += outcome_[b];
    outcome_[b] = 0.0;
    for (auto& conditional : conditional_) {
      conditional[kWaiting] += conditional[b];
      conditional[b] = 0.0;
    }
  }
}

}  // namespace logitfuse
