#include "logitfuse/vocab.hpp"

#include <algorithm>
#include <numeric>

#include "logitfuse/error.hpp"

namespace logitfuse {

std::uint64_t prefix_key(std::string_view bytes) {
  std::uint64_t key = 0;
  for (std::size_t i = 0; i < 8; ++i) {
    const std::uint64_t byte = i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0U;
    key = key << 8 | byte;
  }
  return key;
}

Vocab::Vocab(std::string blob, std::vector<std::int64_t> offsets, std::vector<TokenKind> kinds)
    : blob_(std::move(blob)), offsets_(std::move(offsets)), kinds_(std::move(kinds)) {
  if (offsets_.size() != kinds_.size() + 1) {
    throw VocabError("a vocabulary of " + std::to_string(kinds_.size()) + " tokens needs " +
                     std::to_string(kinds_.size() + 1) + " offsets, not " +
                     std::to_string(offsets_.size()));
  }
  if (offsets_.front() != 0 || offsets_.back() != static_cast<std::int64_t>(blob_.size()) ||
      !std::is_sorted(offsets_.begin(), offsets_.end())) {
    throw VocabError("token offsets must rise from 0 to the size of the token bytes");
  }
  for (std::int32_t id = 0; id < size(); ++id) {
    TokenKind& kind = kinds_[static_cast<std::size_t>(id)];
    const bool spells = kind == TokenKind::text || kind == TokenKind::byte;
    if (spells && bytes(id).empty()) kind = TokenKind::unused;
    if (kind == TokenKind::end) end_ids_.push_back(id);
  }
  sort_tokens();
  link_same();
  find_spans();
  if (spans_.empty()) throw VocabError("no token of this vocabulary can be emitted");
}

void Vocab::sort_tokens() {
  struct Entry {
    std::uint64_t key;
    std::int32_t id;
  };
  std::vector<Entry> entries;
  entries.reserve(kinds_.size());
  for (std::int32_t id = 0; id < size(); ++id) {
    if (kind(id) == TokenKind::text || kind(id) == TokenKind::byte) {
      entries.push_back({prefix_key(bytes(id)), id});
    }
  }
  std::sort(entries.begin(), entries.end(), [this](const Entry& a, const Entry& b) {
    if (a.key != b.key) return a.key < b.key;
    if (const int order = bytes(a.id).compare(bytes(b.id)); order != 0) return order < 0;
    if (kind(a.id) != kind(b.id)) return kind(a.id) == TokenKind::text;
    return a.id < b.id;
  });
  sorted_.reserve(entries.size());
  for (const Entry& entry : entries) sorted_.push_back(entry.id);
}

void Vocab::link_same() {
  canonical_.assign(kinds_.size(), kNone);
  next_same_.assign(kinds_.size(), kNone);
  const auto link = [this](std::span<const std::int32_t> same) {
    for (std::size_t i = 0; i < same.size(); ++i) {
      canonical_[static_cast<std::size_t>(same[i])] = same.front();
      if (i > 0) next_same_[static_cast<std::size_t>(same[i - 1])] = same[i];
    }
    if (same.size() > 1) shared_.push_back(same.front());
  };
  for (std::size_t first = 0; first < sorted_.size();) {
    std::size_t last = first + 1;
    while (last < sorted_.size() && bytes(sorted_[last]) == bytes(sorted_[first])) ++last;
    link(std::span(sorted_).subspan(first, last - first));
    most_equal_ = std::max(most_equal_, static_cast<std::int32_t>(last - first));
    first = last;
  }
  link(end_ids_);
}

void Vocab::find_spans() {
  for (std::int32_t id = 0; id < size(); ++id) {
    if (canonical(id) == kNone) continue;
    if (!spans_.empty() && spans_.back().end == id) {
      ++spans_.back().end;
    } else {
      spans_.push_back({id, id + 1});
    }
  }
}

std::int32_t Vocab::lookup(std::string_view wanted) const {
  const auto found = std::lower_bound(
      sorted_.begin(), sorted_.end(), wanted,
      [this](std::int32_t id, std::string_view value) { return bytes(id) < value; });
  return found != sorted_.end() && bytes(*found) == wanted ? *found : kNone;
}

std::pair<std::size_t, std::size_t> Vocab::prefix_range(std::string_view prefix) const {
  const auto first = std::lower_bound(
      sorted_.begin(), sorted_.end(), prefix,
      [this](std::int32_t id, std::string_view value) { return bytes(id) < value; });
  const auto last = std::upper_bound(first, sorted_.end(), prefix,
                                     [this](std::string_view value, std::int32_t id) {
                                       return value < bytes(id).substr(0, value.size());
                                     });
  return {static_cast<std::size_t>(first - sorted_.begin()),
          static_cast<std::size_t>(last - sorted_.begin())};
}

bool Vocab::operator==(const Vocab& other) const {
  return kinds_ == other.kinds_ && offsets_ == other.offsets_ && blob_ == other.blob_;
}

namespace {

// The bytes a character may go on with, by its first byte (Unicode standard, table 3-7): number of
// continuation bytes, and the range of the first of them.
struct Utf8Lead {
  std::size_t continuations;
  unsigned char low, high;
};

bool utf8_lead(unsigned char first, Utf8Lead& lead) {
  if (first < 0x80) return lead = {0, 0, 0}, true;
  if (first < 0xC2) return false;
  if (first < 0xE0) return lead = {1, 0x80, 0xBF}, true;
  if (first == 0xE0) return lead = {2, 0xA0, 0xBF}, true;
  if (first == 0xED) return lead = {2, 0x80, 0x9F}, true;
  if (first < 0xF0) return lead = {2, 0x80, 0xBF}, true;
  if (first == 0xF0) return lead = {3, 0x90, 0xBF}, true;
  if (first < 0xF4) return lead = {3, 0x80, 0xBF}, true;
  if (first == 0xF4) return lead = {3, 0x80, 0x8F}, true;
  return false;
}

// Reads one character of at(0), at(1), ... of `n` bytes: the number of bytes it spans, which may be
// past n when the text ends inside it, or 0 when no character starts here.
template <typename At>
std::size_t character(const At& at, std::size_t n) {
  Utf8Lead lead;
  if (!utf8_lead(at(0), lead)) return 0;
  for (std::size_t i = 1; i <= lead.continuations && i < n; ++i) {
    const unsigned char low = i == 1 ? lead.low : 0x80;
    const unsigned char high = i == 1 ? lead.high : 0xBF;
    if (at(i) < low || at(i) > high) return 0;
  }
  return lead.continuations + 1;
}

}  // namespace

bool continues_utf8(std::string_view pending, std::string_view bytes) {
  const std::size_t n = pending.size() + bytes.size();
  for (std::size_t pos = 0; pos < n;) {
    const auto at = [&](std::size_t i) {
      const std::size_t k = pos + i;
      return static_cast<unsigned char>(k < pending.size() ? pending[k]
                                                           : bytes[k - pending.size()]);
    };
    const std::size_t length = character(at, n - pos);
    if (length == 0) return false;
    pos += length;
  }
  return true;
}

std::size_t unfinished_utf8(std::string_view text) {
  for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const std::size_t start = text.size() - back;
    const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[start + i]); };
    if (character(at, back) > back) return back;
  }
  return 0;
}

}  // namespace logitfuse
