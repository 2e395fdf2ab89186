// A vocabulary as a trie over bytes, so that sets of tokens with a common prefix are ranges.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "logitfuse/vocab.hpp"

namespace logitfuse {

class ByteTrie {
 public:
  /// The tokens that begin with the node's string are the positions [begin, end) of
  /// `Vocab::sorted()`; the first of them, [begin, ends), spell exactly that string.
  struct Node {
    std::int32_t begin, ends, end;
    std::int32_t first_child;  ///< children are neighbours, ascending by byte
    std::uint16_t n_children;
    std::uint8_t byte;  ///< the last byte of the node's string
  };

  static constexpr std::int32_t kRoot = 0;

  explicit ByteTrie(std::shared_ptr<const Vocab> vocab);

  const Vocab& vocab() const { return *vocab_; }
  std::size_t size() const { return nodes_.size(); }
  const Node& node(std::int32_t at) const { return nodes_[static_cast<std::size_t>(at)]; }

  /// The children of a node are [first_child, first_child + n_children).
  /// The child that goes on with a byte, or kNone.
  std::int32_t child(std::int32_t at, std::uint8_t byte) const;

 private:
  std::shared_ptr<const Vocab> vocab_;
  std::vector<Node> nodes_;
};

}  // namespace logitfuse
