#include "logitfuse/unit_search.hpp"

#include <algorithm>
#include <limits>

#include "logitfuse/error.hpp"
#include "math.hpp"

namespace logitfuse {

UnitSearch::UnitSearch(std::shared_ptr<const Alignment> alignment,
                       std::vector<std::shared_ptr<const ByteBeam>> beams, Rule rule)
    : alignment_(std::move(alignment)),
      beams_(std::move(beams)),
      rule_(std::move(rule)),
      conditional_(beams_.size(), std::vector<double>(kOutcomes)),
      outcome_(kOutcomes),
      logs_(beams_.size() * kOutcomes),
      pooled_(kOutcomes) {
  Formula check(rule_.pool);
  const bool linear = rule_.pool.kind == PoolKind::linear;
  if (!linear && rule_.per == PoolUnit::unit) {
    throw FusionError("only the linear pool can weigh whole units; weigh bytes");
  }
  if (!linear && rule_.gate) throw FusionError("a learned gate weighs the linear pool only");
  if (rule_.gate && rule_.gate->members() != beams_.size()) {
    throw FusionError("the learned gate is one of " + std::to_string(rule_.gate->members()) +
                      " members; here are " + std::to_string(beams_.size()));
  }
}

void UnitSearch::read(std::span<const double> weights, Text text) {
  weights_ = normalise_weights(rule_.pool.kind, weights, beams_.size());
  text_ = std::move(text);
  spelled_.clear();
  nodes_.clear();
  places_.clear();
  masses_.assign(beams_.size(), 1.0);
  listed_.clear();
  n_best_ = 0;
  heap_ = {};
  for (std::size_t m = 0; m < beams_.size(); ++m) {
    if (weights_[m] == 0.0) continue;
    const ByteBeam& beam = *beams_[m];
    if (beam.dead() || !beam.wanted().empty()) {
      throw FusionError("member " + std::to_string(m) + " has a weight but no distribution",
                        static_cast<int>(m));
    }
    const auto hypotheses = beam.hypotheses();
    for (std::size_t h = 0; h < hypotheses.size(); ++h) {
      if (hypotheses[h].waits) continue;
      places_.push_back(
          {static_cast<std::int32_t>(m), static_cast<std::int32_t>(h), hypotheses[h].at});
    }
  }
  Node root{};
  root.parent = kNone;
  root.n_places = static_cast<std::int32_t>(places_.size());
  root.probability = 1.0;
  root.settled = true;
  nodes_.push_back(root);
  heap_.push({1.0, 0});
}

// The same rule as in ByteBeam::step: some path that ends here is extended at once.
bool UnitSearch::needs_row(const Node& node) const {
  for (std::int32_t p = node.first_place; p < node.first_place + node.n_places;) {
    const std::int32_t member = places_[static_cast<std::size_t>(p)].member;
    const ByteBeam& beam = *beams_[static_cast<std::size_t>(member)];
    double total = 0.0;
    double most = 0.0;
    for (; p < node.first_place + node.n_places; ++p) {
      const Place place = places_[static_cast<std::size_t>(p)];
      if (place.member != member) break;
      const auto& hypothesis = beam.hypotheses()[static_cast<std::size_t>(place.hypothesis)];
      const double exact = hypothesis.share * beam.exact_mass(hypothesis, place.at);
      most = std::max(most, exact);
      if (beam.expects_end(hypothesis, place.at)) return true;
      total += exact + hypothesis.share * beam.longer_mass(hypothesis, place.at);
    }
    if (most > 0.0 && most >= total * beam.options().prune) return true;
  }
  return false;
}

void UnitSearch::add_child(std::int32_t at, std::size_t outcome) {
  const double probability = nodes_[static_cast<std::size_t>(at)].probability * outcome_[outcome];
  for (std::size_t m = 0; m < beams_.size(); ++m) {
    masses_.push_back(masses_[static_cast<std::size_t>(at) * beams_.size() + m] *
                      conditional_[m][outcome]);
  }
  heap_.push({probability, static_cast<std::int32_t>(nodes_.size())});
  nodes_.push_back({at, 0, 0, 0, 0, probability, static_cast<std::uint16_t>(outcome),
                    outcome >= kByteEnd, outcome >= kByteEnd, false, false});
}

// Finds out where the hypotheses stand at a node, and whether it is a unit.  Put off until the node
// is reached: most never are.
void UnitSearch::settle(std::int32_t at) {
  if (nodes_[static_cast<std::size_t>(at)].settled) return;
  Node node = nodes_[static_cast<std::size_t>(at)];
  const Node parent = nodes_[static_cast<std::size_t>(node.parent)];
  node.first_place = static_cast<std::int32_t>(places_.size());
  for (std::int32_t p = parent.first_place; p < parent.first_place + parent.n_places; ++p) {
    Place place = places_[static_cast<std::size_t>(p)];
    place.at = beams_[static_cast<std::size_t>(place.member)]->trie().child(
        place.at, static_cast<std::uint8_t>(node.byte));
    if (place.at != kNone) places_.push_back(place);
  }
  node.n_places = static_cast<std::int32_t>(places_.size()) - node.first_place;
  node.settled = true;
  node.ends = needs_row(node);
  nodes_[static_cast<std::size_t>(at)] = node;
}

void UnitSearch::expand(std::int32_t at) {
  ask(at, allowed(at));
  std::fill(outcome_.begin(), outcome_.end(), 0.0);
  if (rule_.pool.kind == PoolKind::linear) {
    mix(at);
  } else {
    pool();
  }
  gather_unspelled();
  const auto first = static_cast<std::int32_t>(nodes_.size());
  for (std::size_t b = 0; b < kOutcomes; ++b) {
    if (outcome_[b] > 0.0) add_child(at, b);
  }
  Node& node = nodes_[static_cast<std::size_t>(at)];
  node.expanded = true;
  node.first_child = first;
  node.n_children = static_cast<std::int32_t>(nodes_.size()) - first;
}

std::string UnitSearch::spell(std::int32_t at) const {
  std::string bytes;
  for (; nodes_[static_cast<std::size_t>(at)].parent != kNone;
       at = nodes_[static_cast<std::size_t>(at)].parent) {
    const std::uint16_t byte = nodes_[static_cast<std::size_t>(at)].byte;
    if (byte < kByteEnd) bytes.push_back(static_cast<char>(byte));
  }
  std::reverse(bytes.begin(), bytes.end());
  return bytes;
}

std::int32_t UnitSearch::symbol(std::int32_t at) {
  if (nodes_[static_cast<std::size_t>(at)].byte == kByteEnd) return alignment_->end();
  const std::string bytes = spell(at);
  const std::int32_t known = alignment_->lookup(bytes);
  if (known != kNone) return known;
  const auto next = alignment_->size() + static_cast<std::int32_t>(names_.size());
  const auto [entry, is_new] = named_.try_emplace(bytes, next);
  if (is_new) names_.push_back(bytes);
  return entry->second;
}

std::span<const std::int32_t> UnitSearch::spelled(std::int32_t symbol) const {
  const auto found = spelled_.find(symbol);
  if (found == spelled_.end()) return {};
  return found->second;
}

std::string_view UnitSearch::unit(std::int32_t symbol) const {
  if (symbol < alignment_->size()) return alignment_->bytes(symbol);
  return names_.at(static_cast<std::size_t>(symbol - alignment_->size()));
}

void UnitSearch::list(std::int32_t at) {
  Node& node = nodes_[static_cast<std::size_t>(at)];
  if (node.listed) return;
  node.listed = true;
  listed_.push_back(at);
  if (node.byte != kWaiting) return;
  std::vector<std::int32_t>& bytes = spelled_[symbol(at)];
  const Node parent = nodes_[static_cast<std::size_t>(node.parent)];
  for (std::int32_t c = parent.first_child; c < parent.first_child + parent.n_children; ++c) {
    if (c != at) bytes.push_back(nodes_[static_cast<std::size_t>(c)].byte);
  }
}

std::int32_t UnitSearch::draw(double place) {
  std::int32_t at = 0;
  while (!nodes_[static_cast<std::size_t>(at)].ends) {
    if (!nodes_[static_cast<std::size_t>(at)].expanded) expand(at);
    const Node node = nodes_[static_cast<std::size_t>(at)];
    if (node.n_children == 0) throw FusionError("no member can go on from here");
    place *= node.probability;  // within the children, which sum to the node's probability
    std::int32_t child = node.first_child;
    const std::int32_t last = node.first_child + node.n_children - 1;
    while (child < last && place >= nodes_[static_cast<std::size_t>(child)].probability) {
      place -= nodes_[static_cast<std::size_t>(child)].probability;
      ++child;
    }
    at = child;
    settle(at);
    place /= nodes_[static_cast<std::size_t>(at)].probability;
    place = std::min(place, 1.0 - 0x1.0p-53);
  }
  list(at);
  return symbol(at);
}

std::int32_t UnitSearch::along(std::string_view text) {
  std::int32_t at = 0;
  const std::size_t steps = std::max<std::size_t>(text.size(), 1);
  for (std::size_t i = 0; i < steps && !nodes_[static_cast<std::size_t>(at)].ends; ++i) {
    const std::size_t outcome = text.empty() ? kByteEnd : static_cast<std::uint8_t>(text[i]);
    const std::int32_t spelled = child(at, outcome);
    at = spelled == kNone ? child(at, kWaiting) : spelled;
    if (at == kNone) return kNone;
  }
  list(at);
  return symbol(at);
}

void UnitSearch::forget() {
  named_.clear();
  names_.clear();
}

// The child of a node behind an outcome, or kNone.
std::int32_t UnitSearch::child(std::int32_t at, std::size_t outcome) {
  if (nodes_[static_cast<std::size_t>(at)].ends) return kNone;
  if (!nodes_[static_cast<std::size_t>(at)].expanded) expand(at);
  const Node node = nodes_[static_cast<std::size_t>(at)];
  for (std::int32_t c = node.first_child; c < node.first_child + node.n_children; ++c) {
    if (nodes_[static_cast<std::size_t>(c)].byte != outcome) continue;
    settle(c);
    return c;
  }
  return kNone;
}

// Lists a symbol if it is a unit.
void UnitSearch::force(std::int32_t symbol) {
  std::int32_t at = 0;
  if (symbol == alignment_->end()) {
    at = child(at, kByteEnd);
  } else {
    for (const char byte : unit(symbol)) {
      at = child(at, static_cast<std::uint8_t>(byte));
      if (at == kNone) break;
    }
  }
  if (at != kNone && nodes_[static_cast<std::size_t>(at)].ends) list(at);
}

const Fused& UnitSearch::candidates(std::int32_t n, std::span<const std::int32_t> forced) {
  if (n < 1) throw FusionError("at least one unit must be asked for, not " + std::to_string(n));
  while (!heap_.empty() && n_best_ < n) take_best();
  for (const std::int32_t symbol : forced) force(symbol);
  // What was forced or drawn stands in the heap too; nothing that is listed is outside.
  while (!heap_.empty() && is_known(heap_.top().node)) take_best();
  const auto before = [this](std::int32_t a, std::int32_t b) {
    return nodes_[static_cast<std::size_t>(a)].probability >
           nodes_[static_cast<std::size_t>(b)].probability;
  };
  std::stable_sort(listed_.begin(), listed_.end(), before);
  return report();
}

bool UnitSearch::is_known(std::int32_t at) const {
  const Node& node = nodes_[static_cast<std::size_t>(at)];
  return node.expanded || node.listed;
}

// The most probable string that is left: a unit, which is listed, or one that units begin with.
void UnitSearch::take_best() {
  const std::int32_t at = heap_.top().node;
  heap_.pop();
  settle(at);
  if (nodes_[static_cast<std::size_t>(at)].ends) {
    list(at);
    ++n_best_;
  } else if (!nodes_[static_cast<std::size_t>(at)].expanded) {
    expand(at);
  }
}

const Fused& UnitSearch::report() {
  const std::size_t size = listed_.size();
  const std::size_t members = beams_.size();
  fused_.symbols.resize(size);
  fused_.logprobs.resize(size);
  fused_.member_logprobs.resize(members * size);
  for (std::size_t k = 0; k < size; ++k) {
    const auto at = static_cast<std::size_t>(listed_[k]);
    fused_.symbols[k] = symbol(listed_[k]);
    fused_.logprobs[k] = static_cast<float>(std::min(log_of(nodes_[at].probability), 0.0));
    for (std::size_t m = 0; m < members; ++m) {
      fused_.member_logprobs[m * size + k] =
          weights_[m] == 0.0 ? std::numeric_limits<float>::quiet_NaN()
                             : static_cast<float>(log_of(masses_[at * members + m]));
    }
  }
  fused_.outside = heap_.empty() ? -std::numeric_limits<float>::infinity()
                                 : static_cast<float>(log_of(heap_.top().probability));
  fused_.partial = false;
  return fused_;
}

}  // namespace logitfuse
