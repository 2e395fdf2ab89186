#include "logitfuse/byte_trie.hpp"

#include <algorithm>

namespace logitfuse {

// Breadth first, so that the children of a node are neighbours: the tokens are sorted, so every
// child is a run of tokens with the same byte at the depth of its parent.
ByteTrie::ByteTrie(std::shared_ptr<const Vocab> vocab) : vocab_(std::move(vocab)) {
  const auto sorted = vocab_->sorted();
  const auto byte_at = [&](std::int32_t position, std::size_t depth) {
    const auto token = sorted[static_cast<std::size_t>(position)];
    return static_cast<std::uint8_t>(vocab_->bytes(token)[depth]);
  };
  const auto length = [&](std::int32_t position) {
    return vocab_->bytes(sorted[static_cast<std::size_t>(position)]).size();
  };
  nodes_.push_back({0, 0, static_cast<std::int32_t>(sorted.size()), 0, 0, 0});
  std::size_t level_end = 1;
  std::size_t depth = 0;
  for (std::size_t at = 0; at < nodes_.size(); ++at) {
    if (at == level_end) {
      level_end = nodes_.size();
      ++depth;
    }
    Node node = nodes_[at];
    node.ends = node.begin;
    while (node.ends < node.end && length(node.ends) == depth) ++node.ends;
    node.first_child = static_cast<std::int32_t>(nodes_.size());
    for (std::int32_t begin = node.ends; begin < node.end;) {
      const std::uint8_t byte = byte_at(begin, depth);
      std::int32_t end = begin + 1;
      while (end < node.end && byte_at(end, depth) == byte) ++end;
      nodes_.push_back({begin, begin, end, 0, 0, byte});
      ++node.n_children;
      begin = end;
    }
    nodes_[at] = node;
  }
}

std::int32_t ByteTrie::child(std::int32_t at, std::uint8_t byte) const {
  const Node& parent = node(at);
  const auto first = nodes_.begin() + parent.first_child;
  const auto last = first + parent.n_children;
  const auto found = std::lower_bound(
      first, last, byte, [](const Node& one, std::uint8_t wanted) { return one.byte < wanted; });
  if (found == last || found->byte != byte) return kNone;
  return static_cast<std::int32_t>(found - nodes_.begin());
}

}  // namespace logitfuse
