// What joins N vocabularies: the union of their byte strings and one end symbol.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "logitfuse/vocab.hpp"

namespace logitfuse {

/// Symbols are the distinct byte strings of all members, in lexicographic order, and then the end.
/// When all vocabularies are equal there are no maps: a symbol is the canonical token id itself.
class Alignment {
 public:
  explicit Alignment(std::vector<std::shared_ptr<const Vocab>> vocabs);

  std::size_t members() const { return vocabs_.size(); }
  const Vocab& vocab(std::size_t member) const { return *vocabs_[member]; }

  /// All vocabularies are equal.
  bool identical() const { return identical_; }

  /// Symbols are 0 .. size()-1; on the identical path ids that are not canonical stay unused.
  std::int32_t size() const { return size_; }
  std::int32_t end() const { return end_; }  ///< the end symbol, or kNone: no member has an end

  /// The symbol a member's token stands for, or kNone (control, unused).
  std::int32_t symbol(std::size_t member, std::int32_t token) const {
    if (identical()) return vocabs_[member]->canonical(token);
    return to_symbol_[member][static_cast<std::size_t>(token)];
  }
  /// A member's canonical token for a symbol, or kNone: the member has no twin.
  std::int32_t twin(std::size_t member, std::int32_t symbol) const {
    if (identical()) return vocabs_[member]->canonical(symbol) == symbol ? symbol : kNone;
    return to_token_[member][static_cast<std::size_t>(symbol)];
  }
  /// Bytes of a symbol; empty for the end symbol.
  std::string_view bytes(std::int32_t symbol) const;
  /// The symbol that spells these bytes, or kNone.
  std::int32_t lookup(std::string_view bytes) const;

  /// int32 [n_tokens of the member] and int32 [size()]; empty on the identical path.
  std::span<const std::int32_t> to_symbol(std::size_t member) const;
  std::span<const std::int32_t> to_token(std::size_t member) const;

 private:
  void merge();

  std::vector<std::shared_ptr<const Vocab>> vocabs_;
  std::vector<std::vector<std::int32_t>> to_symbol_, to_token_;
  struct Owner {
    std::int32_t member, token;  // where the bytes of a symbol are stored
  };
  std::vector<Owner> symbol_owner_;
  std::int32_t size_ = 0, end_ = kNone;
  bool identical_ = false;
};

}  // namespace logitfuse
