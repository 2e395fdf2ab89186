#include "logitfuse/byte_beam.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "math.hpp"

namespace logitfuse {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kNothing = 1e-9;  // shares below this are rounding

}  // namespace

ByteBeam::ByteBeam(std::shared_ptr<const ByteTrie> trie, BeamOptions options)
    : trie_(std::move(trie)), options_(options) {
  set_prune(options_.prune);
  if (options_.width < 1) {
    throw FusionError("the beam must hold at least 1 hypothesis, not " +
                      std::to_string(options_.width));
  }
  scratch_.resize(static_cast<std::size_t>(trie_->vocab().size()));
}

void ByteBeam::set_prune(double prune) {
  if (!(prune > 0.0 && prune < 1.0)) {
    throw FusionError("prune must lie between 0 and 1, not " + std::to_string(prune));
  }
  options_.prune = prune;
}

std::int32_t ByteBeam::begin() {
  for (Hypothesis& hypothesis : live_) drop(hypothesis);
  dropped_.insert(dropped_.end(), held_.begin(), held_.end());
  held_.clear();
  live_.clear();
  wanted_.clear();
  Hypothesis root;
  root.id = ++last_id_;
  root.share = 1.0;
  live_.push_back(std::move(root));
  wanted_.push_back({last_id_, kNone, kNone});
  return last_id_;
}

void ByteBeam::rest() {
  live_.clear();
  next_.clear();
  held_.clear();
  wanted_.clear();
  dropped_.clear();
  spare_ = {};
  kept_logits_ = {};
}

void ByteBeam::two_rows(const float* before, std::int32_t token, const float* after,
                        TokenBits allowed_before, TokenBits allowed_after) {
  const Vocab& vocab = trie_->vocab();
  if (vocab.kind(token) != TokenKind::text && vocab.kind(token) != TokenKind::byte) {
    throw FusionError("token " + std::to_string(token) + " spells no bytes");
  }
  row(begin(), before, allowed_before);
  Hypothesis& longer = live_.front();
  for (const char byte : vocab.bytes(token)) {
    longer.at = trie_->child(longer.at, static_cast<std::uint8_t>(byte));
  }
  const double ends = exact_mass(longer, longer.at);
  const double goes_on = longer_mass(longer, longer.at);
  Hypothesis behind;
  behind.id = ++last_id_;
  // A member that gave its own token no probability at all still believes in what follows it.
  behind.share = ends + goes_on > 0.0 ? ends / (ends + goes_on) : 1.0;
  longer.share = ends + goes_on > 0.0 ? 1.0 / (ends + goes_on) : 0.0;
  wanted_.push_back({behind.id, longer.id, token});
  live_.push_back(std::move(behind));
  row(last_id_, after, allowed_after);
  std::erase_if(live_, [](const Hypothesis& hypothesis) { return hypothesis.share <= 0.0; });
}

void ByteBeam::drop(Hypothesis& hypothesis) {
  if (!hypothesis.waits) dropped_.push_back(hypothesis.id);
  if (hypothesis.has_row) spare_.push_back(std::move(hypothesis.sums));
}

std::vector<double> ByteBeam::spare_sums() {
  if (spare_.empty()) return std::vector<double>(trie_->vocab().sorted().size() + 1);
  std::vector<double> sums = std::move(spare_.back());
  spare_.pop_back();
  return sums;
}

// Fills scratch_ with what is proportional to the probabilities; false where there is no finite
// maximum.  NaN stays NaN.
bool ByteBeam::exponentiate(const float* logits) {
  const Vocab& vocab = trie_->vocab();
  const Kernels& k = kernels();
  float max = -kInf;
  for (const IdRange span : vocab.spans()) {
    const auto n = static_cast<std::size_t>(span.end - span.begin);
    // The scratch is as long as the vocabulary, the block maxima are fewer.
    max = std::max(max, k.block_max(logits + span.begin, n, scratch_.data()));
  }
  if (max == kInf || max == -kInf) return false;
  for (const IdRange span : vocab.spans()) {
    const auto n = static_cast<std::size_t>(span.end - span.begin);
    k.exp_shifted(logits + span.begin, n, max, 1.0F, scratch_.data() + span.begin);
  }
  return true;
}

// Double sums: a mass is a difference, and near the end of the row the sum is 1.
void ByteBeam::row(std::int32_t id, const float* logits, TokenBits allowed) {
  const auto found =
      std::find_if(live_.begin(), live_.end(), [id](const auto& h) { return h.id == id; });
  if (found == live_.end() || found->has_row) {
    throw FusionError("no row is wanted for hypothesis " + std::to_string(id));
  }
  const Vocab& vocab = trie_->vocab();
  const auto refuse = [] { throw FusionError("the row holds NaN, +inf or nothing but -inf"); };
  if (!exponentiate(logits)) refuse();
  if (!allowed.empty()) {
    kept_logits_.resize(static_cast<std::size_t>(vocab.size()));
    keep_allowed(vocab, allowed, logits, kept_logits_.data());
    if (!exponentiate(kept_logits_.data())) std::fill(scratch_.begin(), scratch_.end(), 0.0F);
  }
  std::vector<double> sums = spare_sums();
  const auto sorted = vocab.sorted();
  double sum = 0.0;
  sums[0] = 0.0;
  for (std::size_t position = 0; position < sorted.size(); ++position) {
    sum += static_cast<double>(scratch_[static_cast<std::size_t>(sorted[position])]);
    sums[position + 1] = sum;
  }
  double end = 0.0;
  for (const std::int32_t token : vocab.end_ids()) {
    end += static_cast<double>(scratch_[static_cast<std::size_t>(token)]);
  }
  // Normalised by what was summed here, so that the shares of the next bytes sum to 1.
  const double all = sum + end;
  if (std::isnan(all)) refuse();
  const double scale = all > 0.0 ? 1.0 / all : 0.0;
  for (double& value : sums) value *= scale;
  found->sums = std::move(sums);
  found->end = end * scale;
  found->has_row = true;
  std::erase_if(wanted_, [id](const Wanted& wanted) { return wanted.id == id; });
}

double ByteBeam::mass(const Hypothesis& hypothesis, std::int32_t at) const {
  if (at == ByteTrie::kRoot) return 1.0;
  const ByteTrie::Node& node = trie_->node(at);
  return hypothesis.sums[static_cast<std::size_t>(node.end)] -
         hypothesis.sums[static_cast<std::size_t>(node.begin)];
}

double ByteBeam::exact_mass(const Hypothesis& hypothesis, std::int32_t at) const {
  const ByteTrie::Node& node = trie_->node(at);
  return hypothesis.sums[static_cast<std::size_t>(node.ends)] -
         hypothesis.sums[static_cast<std::size_t>(node.begin)];
}

double ByteBeam::longer_mass(const Hypothesis& hypothesis, std::int32_t at) const {
  if (at == ByteTrie::kRoot) return 1.0;
  const ByteTrie::Node& node = trie_->node(at);
  return hypothesis.sums[static_cast<std::size_t>(node.end)] -
         hypothesis.sums[static_cast<std::size_t>(node.ends)];
}

std::size_t ByteBeam::push(std::string_view bytes) {
  if (!wanted_.empty()) throw FusionError("rows are wanted before the text can go on");
  for (std::size_t taken = 0; taken < bytes.size(); ++taken) {
    const auto byte = static_cast<std::uint8_t>(bytes[taken]);
    if (dead() || !wanted_.empty() || !resolve(byte)) return taken;
    step(byte);
  }
  return bytes.size();
}

void ByteBeam::expect(std::int32_t id, std::int32_t token) {
  expected_id_ = id;
  expected_token_ = token;
}

// The expected path, or the one that it will come from.
bool ByteBeam::expected(const Branch& branch) const {
  return live_[branch.from].id == expected_id_ && (!branch.ends || branch.token == expected_token_);
}

bool ByteBeam::expects_end(const Hypothesis& hypothesis, std::int32_t at) const {
  if (hypothesis.id != expected_id_ || expected_token_ == kNone) return false;
  const ByteTrie::Node& node = trie_->node(at);
  return node.begin < node.ends &&
         trie_->vocab().sorted()[static_cast<std::size_t>(node.begin)] == expected_token_;
}

double ByteBeam::take_kept() { return std::exchange(kept_, 1.0); }

double ByteBeam::waiting() const {
  double share = 0.0;
  for (const Hypothesis& hypothesis : live_) {
    if (hypothesis.waits) share += hypothesis.share;
  }
  return share;
}

void ByteBeam::wake() {
  for (Hypothesis& hypothesis : live_) {
    if (!hypothesis.waits) continue;
    hypothesis.waits = false;
    wanted_.push_back({hypothesis.id, hypothesis.parent, hypothesis.token});
  }
  dropped_.insert(dropped_.end(), held_.begin(), held_.end());
  held_.clear();
}

// Gives the waiting paths up, or wakes them: then the byte cannot be taken yet.
bool ByteBeam::resolve(std::uint8_t byte) {
  const double waiting_share = waiting();
  if (waiting_share == 0.0) return true;
  double spelled = 0.0;
  for (const Hypothesis& hypothesis : live_) {
    if (hypothesis.waits) continue;
    const std::int32_t child = trie_->child(hypothesis.at, byte);
    if (child != kNone) spelled += hypothesis.share * mass(hypothesis, child);
  }
  if (spelled < kSpelled * waiting_share) {
    wake();
    return false;
  }
  std::erase_if(live_, [](const Hypothesis& hypothesis) { return hypothesis.waits; });
  dropped_.insert(dropped_.end(), held_.begin(), held_.end());
  held_.clear();
  return true;
}

// What every hypothesis becomes: the same path with one more byte pending, and the path that takes
// the pending bytes for a whole token.
void ByteBeam::branch_out(std::uint8_t byte) {
  branches_.clear();
  total_ = 0.0;
  for (std::size_t h = 0; h < live_.size(); ++h) {
    Hypothesis& from = live_[h];
    from.at = trie_->child(from.at, byte);
    if (from.at == kNone) continue;
    const double longer = from.share * longer_mass(from, from.at);
    const double ends = from.share * exact_mass(from, from.at);
    total_ += longer + ends;
    branches_.push_back({h, longer, false, kNone});
    const auto position = static_cast<std::size_t>(trie_->node(from.at).begin);
    if (ends > 0.0) branches_.push_back({h, ends, true, trie_->vocab().sorted()[position]});
  }
}

// Paths that end with the same two tokens believe nearly the same: the lighter ones join the
// heaviest instead of costing a forward pass at every token.  What is about to be pruned may join.
void ByteBeam::merge() {
  constexpr double kMerged = 10.0;  // times `prune`: the share below which a path joins another
  for (Branch& heavy : branches_) {
    const std::int32_t before = live_[heavy.from].token;
    if (!heavy.ends || before == kNone) continue;
    for (const Branch& light : branches_) {
      const bool same = light.ends && light.token == heavy.token &&
                        live_[light.from].token == before && light.from != heavy.from;
      if (!same || light.mass <= 0.0 || light.mass > heavy.mass || expected(light)) continue;
      if (light.mass > kMerged * options_.prune * total_) continue;
      heavy.mass += light.mass;
      branches_[static_cast<std::size_t>(&light - branches_.data())].mass = 0.0;
    }
  }
}

void ByteBeam::step(std::uint8_t byte) {
  branch_out(byte);
  merge();
  std::erase_if(branches_, [&](const Branch& branch) {
    return branch.mass <= (expected(branch) ? 0.0 : total_ * kNothing);
  });
  std::stable_sort(branches_.begin(), branches_.end(), [this](const Branch& a, const Branch& b) {
    const bool first = expected(a);
    return first != expected(b) ? first : a.mass > b.mass;
  });
  const auto width = static_cast<std::size_t>(options_.width);
  if (branches_.size() > width) branches_.resize(width);
  double kept = 0.0;
  for (const Branch& branch : branches_) kept += branch.mass;
  if (total_ > 0.0) kept_ *= kept / total_;

  next_.clear();
  std::vector<bool> goes_on(live_.size(), false), is_parent(live_.size(), false);
  for (const Branch& branch : branches_) {
    if (!branch.ends) {
      goes_on[branch.from] = true;
      continue;
    }
    Hypothesis fresh;
    fresh.id = ++last_id_;
    fresh.share = branch.mass / kept;
    fresh.parent = live_[branch.from].id;
    fresh.token = branch.token;
    fresh.waits = branch.mass < total_ * options_.prune && !expected(branch);
    is_parent[branch.from] = fresh.waits;
    if (!fresh.waits) wanted_.push_back({fresh.id, fresh.parent, fresh.token});
    next_.push_back(std::move(fresh));
  }
  for (std::size_t h = 0; h < live_.size(); ++h) {
    if (goes_on[h]) {
      live_[h].share /= kept;
      next_.push_back(std::move(live_[h]));
    } else if (is_parent[h]) {
      held_.push_back(live_[h].id);
      spare_.push_back(std::move(live_[h].sums));
    } else {
      drop(live_[h]);
    }
  }
  std::swap(live_, next_);
  // With nothing but waiting paths left, they are all there is.
  if (std::all_of(live_.begin(), live_.end(), [](const auto& h) { return h.waits; })) wake();
}

std::int32_t ByteBeam::best() const {
  double most = -1.0;
  std::int32_t id = kNone;
  for (const Hypothesis& hypothesis : live_) {
    const double mass =
        hypothesis.share * (hypothesis.has_row ? longer_mass(hypothesis, hypothesis.at) : 1.0);
    if (mass > most) {
      most = mass;
      id = hypothesis.id;
    }
  }
  return id;
}

void ByteBeam::next(std::span<float> out) const {
  if (!wanted_.empty()) throw FusionError("rows are wanted before the next byte is known");
  if (dead()) throw FusionError("the member cannot spell the text");
  std::array<double, kByteOutcomes> masses{};
  double total = 0.0;
  for (const Hypothesis& hypothesis : live_) {
    if (hypothesis.waits) continue;
    const ByteTrie::Node& node = trie_->node(hypothesis.at);
    for (std::int32_t c = node.first_child; c < node.first_child + node.n_children; ++c) {
      masses[trie_->node(c).byte] += hypothesis.share * mass(hypothesis, c);
    }
    if (hypothesis.at == ByteTrie::kRoot) masses[kByteEnd] += hypothesis.share * hypothesis.end;
  }
  const double waiting_share = waiting();
  std::size_t unspelled = 0;
  const auto spelled = [&](double mass) { return mass >= kSpelled * waiting_share; };
  for (const double mass : masses) unspelled += spelled(mass) ? 0 : 1;
  for (double& mass : masses) {
    if (!spelled(mass)) mass += waiting_share / static_cast<double>(unspelled);
    total += mass;
  }
  for (std::size_t b = 0; b < kByteOutcomes; ++b) {
    out[b] = total > 0.0 ? static_cast<float>(log_of(masses[b] / total)) : -kInf;
  }
}

}  // namespace logitfuse
