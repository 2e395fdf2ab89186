// A tokenizer's vocabulary as a byte-exact table: token id -> bytes and kind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace logitfuse {

/// What a token stands for.  Only text, byte and end tokens can be emitted.
enum class TokenKind : std::uint8_t {
  text,     ///< spells bytes
  byte,     ///< spells one byte (byte fallback)
  end,      ///< ends the answer; a vocabulary may have several
  control,  ///< steers the model, never spelled
  unused,   ///< padding
};

inline constexpr std::int32_t kNone = -1;

/// Half-open range of token ids.
struct IdRange {
  std::int32_t begin, end;
};

class Vocab {
 public:
  /// `blob` holds the bytes of all tokens back to back, token i at [offsets[i], offsets[i+1]).
  /// A text or byte token without bytes could never advance a text: it becomes `unused`.
  /// Throws VocabError on inconsistent sizes or when nothing can be emitted.
  Vocab(std::string blob, std::vector<std::int64_t> offsets, std::vector<TokenKind> kinds);

  std::int32_t size() const { return static_cast<std::int32_t>(kinds_.size()); }
  std::string_view bytes(std::int32_t id) const {
    const auto i = static_cast<std::size_t>(id);
    const auto begin = static_cast<std::size_t>(offsets_[i]);
    return {blob_.data() + begin, static_cast<std::size_t>(offsets_[i + 1]) - begin};
  }
  TokenKind kind(std::int32_t id) const { return kinds_[static_cast<std::size_t>(id)]; }
  std::span<const TokenKind> kinds() const { return kinds_; }
  std::span<const std::int32_t> end_ids() const { return end_ids_; }

  /// Text and byte tokens in lexicographic order of their bytes; equal bytes: canonical id first.
  std::span<const std::int32_t> sorted() const { return sorted_; }

  /// The canonical id that spells exactly these bytes, or kNone.
  std::int32_t lookup(std::string_view bytes) const;

  /// Positions [first, last) in `sorted()` of the tokens whose bytes begin with `prefix`.
  std::pair<std::size_t, std::size_t> prefix_range(std::string_view prefix) const;

  /// The one id that stands for all tokens of the same meaning: equal bytes (a text token before a
  /// byte token, then the lowest id) or end (the first end id).  kNone for control and unused.
  std::int32_t canonical(std::int32_t id) const { return canonical_[static_cast<std::size_t>(id)]; }

  /// The next id after `id` with the same meaning, or kNone.  Chains start at the canonical id.
  std::int32_t next_same(std::int32_t id) const { return next_same_[static_cast<std::size_t>(id)]; }

  /// Canonical ids of the chains with more than one token.
  std::span<const std::int32_t> shared() const { return shared_; }

  /// The most tokens that spell the same bytes (1: no duplicates).
  std::int32_t most_equal() const { return most_equal_; }

  /// The ids that can be emitted, as few ranges: everything else never takes part in a softmax.
  std::span<const IdRange> spans() const { return spans_; }

  /// Same tokens with the same bytes and kinds.
  bool operator==(const Vocab& other) const;

 private:
  void sort_tokens();
  void link_same();
  void find_spans();

  std::string blob_;
  std::vector<std::int64_t> offsets_;
  std::vector<TokenKind> kinds_;
  std::vector<std::int32_t> end_ids_, sorted_, canonical_, next_same_, shared_;
  std::vector<IdRange> spans_;
  std::int32_t most_equal_ = 1;
};

/// The first eight bytes, big-endian and zero-padded: orders most strings with one comparison.
std::uint64_t prefix_key(std::string_view bytes);

/// Whether `bytes` may follow in a UTF-8 text whose last `pending.size()` bytes (at most 3) are the
/// unfinished character `pending`; the text may end inside a character again.
bool continues_utf8(std::string_view pending, std::string_view bytes);

/// Number of bytes (0 to 3) of the unfinished but so far valid character at the end of `text`.
std::size_t unfinished_utf8(std::string_view text);

}  // namespace logitfuse
