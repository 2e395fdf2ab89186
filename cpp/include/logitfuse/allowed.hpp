// What a constraint (a grammar, a JSON schema) leaves of a row of logits.
#pragma once

#include <cstdint>
#include <span>

#include "logitfuse/vocab.hpp"

namespace logitfuse {

/// A bit per token of a vocabulary, from the lowest bit of the first byte on: it may come.  More
/// bits than tokens do no harm.
using TokenBits = std::span<const std::uint8_t>;

inline bool may_come(TokenBits allowed, std::int32_t token) {
  const auto bit = static_cast<std::size_t>(token);
  return ((allowed[bit / 8] >> (bit % 8)) & 1) != 0;
}

/// out[token] = row[token] where the token may come, -inf where not; both float32 [vocab.size()].
/// What cannot be emitted is not written.  Throws FusionError: fewer bits than tokens.
void keep_allowed(const Vocab& vocab, TokenBits allowed, const float* row, float* out);

}  // namespace logitfuse
