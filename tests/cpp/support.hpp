// What the tests of the core share: short ways to write vocabularies and steps, and random ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "logitfuse/alignment.hpp"
#include "logitfuse/kernels.hpp"
#include "logitfuse/pool.hpp"
#include "logitfuse/vocab.hpp"

namespace support {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// All of them.
inline constexpr logitfuse::PoolKind kPoolKinds[] = {
    logitfuse::PoolKind::linear,     logitfuse::PoolKind::log_linear, logitfuse::PoolKind::power,
    logitfuse::PoolKind::min,        logitfuse::PoolKind::product,    logitfuse::PoolKind::contrast,
    logitfuse::PoolKind::consistency};

using Row = std::vector<float>;
using SharedVocab = std::shared_ptr<const logitfuse::Vocab>;

struct Token {
  std::string bytes;
  logitfuse::TokenKind kind = logitfuse::TokenKind::text;
};

inline SharedVocab vocab_of(const std::vector<Token>& tokens) {
  std::string blob;
  std::vector<std::int64_t> offsets{0};
  std::vector<logitfuse::TokenKind> kinds;
  for (const Token& token : tokens) {
    blob += token.bytes;
    offsets.push_back(static_cast<std::int64_t>(blob.size()));
    kinds.push_back(token.kind);
  }
  return std::make_shared<logitfuse::Vocab>(std::move(blob), std::move(offsets), std::move(kinds));
}

inline std::shared_ptr<const logitfuse::Alignment> align(std::vector<SharedVocab> vocabs) {
  return std::make_shared<logitfuse::Alignment>(std::move(vocabs));
}

/// Short random tokens, some of them equal, with several ends and holes that cannot be emitted.
inline SharedVocab random_vocab(std::mt19937& random, std::size_t size) {
  using logitfuse::TokenKind;
  std::vector<Token> tokens{{"a"}};
  while (tokens.size() < size) {
    Token token;
    const auto length = random() % 5;
    for (std::size_t i = 0; i < length; ++i) token.bytes += "ab\xC3\xA9\xFF"[random() % 5];
    const auto roll = random() % 20;
    if (roll < 5) {
      constexpr TokenKind kinds[] = {TokenKind::byte, TokenKind::end, TokenKind::control,
                                     TokenKind::unused, TokenKind::text};
      token.kind = kinds[roll];
    }
    tokens.push_back(token);
  }
  std::shuffle(tokens.begin(), tokens.end(), random);
  return vocab_of(tokens);
}

/// Logits from a normal distribution, a tenth of them -inf; NaN where nothing can be emitted.
inline Row random_row(std::mt19937& random, const logitfuse::Vocab& vocab, float spread = 4.0F) {
  std::normal_distribution<float> normal(0.0F, spread);
  Row row;
  for (std::int32_t id = 0; id < vocab.size(); ++id) {
    const float logit = random() % 10 == 0 ? -kInf : normal(random);
    row.push_back(vocab.canonical(id) == logitfuse::kNone ? kNaN : logit);
  }
  const std::int32_t some = vocab.spans().front().begin;
  row[static_cast<std::size_t>(some)] = normal(random);
  return row;
}

/// Runs `check` on every instruction set that this machine has, and restores the one in use.
template <typename Check>
void on_every_isa(Check check) {
  const std::string before = logitfuse::kernels().isa;
  for (const std::string_view isa : logitfuse::available_isas()) {
    logitfuse::set_isa(isa);
    check(isa);
  }
  logitfuse::set_isa(before);
}

template <typename T>
std::vector<T> copy(std::span<const T> values) {
  return {values.begin(), values.end()};
}

}  // namespace support
