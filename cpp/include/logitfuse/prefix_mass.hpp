// Probability mass of all tokens that begin with given bytes (design: prefix mass).
#pragma once

#include <cstdint>

#include "logitfuse/vocab.hpp"

namespace logitfuse {

/// p(token) / sum of p over the text and byte tokens that begin with the token's bytes: the belief
/// of the member whose row of logits this is that the text, once it goes on with the token's bytes,
/// has a token boundary right behind them.  Tokens of equal bytes are summed.  1 for tokens that
/// spell nothing.  NaN when the row gives the whole range no probability.
/// row: float32 [vocab.size()].  Throws VocabError for a token that is out of range.
double boundary_probability(const Vocab& vocab, const float* row, std::int32_t token);

}  // namespace logitfuse
