#include "logitfuse/allowed.hpp"

#include <limits>
#include <string>

#include "logitfuse/error.hpp"

namespace logitfuse {

void keep_allowed(const Vocab& vocab, TokenBits allowed, const float* row, float* out) {
  if (allowed.size() * 8 < static_cast<std::size_t>(vocab.size())) {
    throw FusionError("there are " + std::to_string(allowed.size() * 8) + " bits for " +
                      std::to_string(vocab.size()) + " tokens");
  }
  for (const IdRange span : vocab.spans()) {
    for (std::int32_t token = span.begin; token < span.end; ++token) {
      out[token] = may_come(allowed, token) ? row[token] : -std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace logitfuse
