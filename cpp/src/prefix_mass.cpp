#include "logitfuse/prefix_mass.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"

namespace logitfuse {

double boundary_probability(const Vocab& vocab, const float* row, std::int32_t token) {
  if (token < 0 || token >= vocab.size()) {
    throw VocabError("token " + std::to_string(token) + " is not in a vocabulary of " +
                     std::to_string(vocab.size()));
  }
  const TokenKind kind = vocab.kind(token);
  if (kind != TokenKind::text && kind != TokenKind::byte) return 1.0;
  const auto [first, last] = vocab.prefix_range(vocab.bytes(token));
  const auto range = vocab.sorted().subspan(first, last - first);
  float max = -std::numeric_limits<float>::infinity();
  for (const std::int32_t id : range) max = std::max(max, row[id]);
  if (max == -std::numeric_limits<float>::infinity()) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  // The tokens are scattered over the row: gather a buffer's worth, then sum it with the kernel.
  // Those of equal bytes come first in sorted order.
  std::array<float, 1024> buffer;
  const auto sum = [&](std::span<const std::int32_t> ids) {
    double total = 0.0;
    for (std::size_t begin = 0; begin < ids.size(); begin += buffer.size()) {
      const std::size_t n = std::min(buffer.size(), ids.size() - begin);
      for (std::size_t k = 0; k < n; ++k) buffer[k] = row[ids[begin + k]];
      total += kernels().sum_exp(buffer.data(), n, max);
    }
    return total;
  };
  std::size_t same = 1;
  while (same < range.size() && vocab.canonical(range[same]) == vocab.canonical(token)) ++same;
  const double ends = sum(range.first(same));
  return ends / (ends + sum(range.subspan(same)));
}

}  // namespace logitfuse
