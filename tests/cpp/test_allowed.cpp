#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string_view>
#include <vector>

#include "logitfuse/allowed.hpp"
#include "logitfuse/byte_beam.hpp"
#include "logitfuse/error.hpp"
#include "logitfuse/pool.hpp"
#include "support.hpp"

using logitfuse::ByteBeam;
using logitfuse::ByteTrie;
using logitfuse::Fused;
using logitfuse::FusionError;
using logitfuse::kAll;
using logitfuse::keep_allowed;
using logitfuse::kNone;
using logitfuse::Pool;
using logitfuse::PoolKind;
using logitfuse::PoolOptions;
using logitfuse::TokenBits;
using logitfuse::TokenKind;
using support::kInf;
using support::Row;

namespace {

using Bits = std::vector<std::uint8_t>;

Bits bits_of(const std::vector<bool>& allowed) {
  Bits bits(allowed.size() / 8 + 1, 0);
  for (std::size_t i = 0; i < allowed.size(); ++i) {
    if (allowed[i]) bits[i / 8] = static_cast<std::uint8_t>(bits[i / 8] | (1U << (i % 8)));
  }
  return bits;
}

double p_of(const Fused& fused, std::int32_t symbol) {
  for (std::size_t k = 0; k < fused.size(); ++k) {
    if (fused.symbols[k] == symbol) return std::exp(static_cast<double>(fused.logprobs[k]));
  }
  return 0.0;
}

Row logs(std::vector<float> probabilities) {
  for (float& p : probabilities) p = std::log(p);
  return probabilities;
}

}  // namespace

TEST_CASE("what may not come is -inf, and what cannot be emitted is left alone") {
  const auto vocab = support::vocab_of(
      {{"a"}, {"<s>", TokenKind::control}, {"b"}, {"</s>", TokenKind::end}, {"c"}});
  const Row row{1, 2, 3, 4, 5};
  Row out(5, 7.0F);
  keep_allowed(*vocab, bits_of({true, true, false, true, false}), row.data(), out.data());
  CHECK(out == Row{1, 7, -kInf, 4, -kInf});
  CHECK_THROWS_AS(keep_allowed(*vocab, TokenBits{}, row.data(), out.data()), FusionError);
}

TEST_CASE("the linear pool of what is allowed is the pool restricted and normalised") {
  const auto vocab = support::vocab_of({{"a"}, {"b"}, {"c"}});
  Pool pool(support::align({vocab, vocab}), {});
  const Row p = logs({0.1F, 0.3F, 0.6F});
  const Row q = logs({0.4F, 0.4F, 0.2F});
  const float* rows[] = {p.data(), q.data()};
  const double weights[] = {0.5, 0.5};
  const Bits two = bits_of({true, true, false});
  const TokenBits allowed[] = {two, two};
  pool.read(rows, weights, allowed);
  const Fused& fused = pool.candidates(kAll);
  REQUIRE(fused.size() == 2);
  CHECK(p_of(fused, 0) == doctest::Approx(0.25 / 0.6));  // not 0.375: the second gave more to it
  CHECK(p_of(fused, 1) == doctest::Approx(0.35 / 0.6));
  CHECK(fused.outside == -kInf);
  CHECK(fused.member_logprobs[0] == doctest::Approx(std::log(0.75)));
  CHECK(pool.best(0) == 1);
  CHECK(pool.draw(0.0) == 0);
  CHECK(pool.draw(0.999) == 1);

  pool.read(rows, weights);  // the next step is free
  CHECK(pool.candidates(kAll).size() == 3);
}

TEST_CASE("credits beyond all numbers") {
  const auto vocab = support::vocab_of({{"a"}, {"b"}});
  for (const PoolKind kind : {PoolKind::linear, PoolKind::power, PoolKind::log_linear}) {
    Pool pool(support::align({vocab, vocab}), PoolOptions{kind});
    const Row sure{0, 1e30F};
    const Row surer{0, 2e30F};
    const float* rows[] = {sure.data(), surer.data()};
    const double weights[] = {1, 1};
    const Bits first = bits_of({true, false});
    const TokenBits allowed[] = {first, first};
    pool.read(rows, weights, allowed);
    const Fused& fused = pool.candidates(1);
    REQUIRE(fused.size() == 1);
    CHECK(fused.logprobs[0] == 0.0F);
  }
}

TEST_CASE("random steps: a mask is a row of -inf") {
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    const auto vocab = support::random_vocab(random, 300);
    Pool pool(support::align({vocab}), {});
    const Row row = support::random_row(random, *vocab);
    std::vector<bool> may(static_cast<std::size_t>(vocab->size()));
    for (std::size_t i = 0; i < may.size(); ++i) may[i] = random() % 3 == 0;
    Row masked = row;
    bool anything = false;
    for (std::int32_t id = 0; id < vocab->size(); ++id) {
      const auto i = static_cast<std::size_t>(id);
      const std::int32_t canonical = vocab->canonical(id);
      if (canonical == kNone) continue;
      may[i] = may[static_cast<std::size_t>(canonical)];  // tokens of equal bytes come together
      if (!may[i]) masked[i] = -kInf;
      anything = anything || masked[i] != -kInf;
    }
    const Bits bits = bits_of(may);
    const TokenBits allowed[] = {bits};
    const double weight[] = {1};
    const float* rows[] = {row.data()};
    const float* others[] = {masked.data()};
    if (!anything) {
      CHECK_THROWS_AS(pool.read(rows, weight, allowed), FusionError);
      continue;
    }
    pool.read(rows, weight, allowed);
    const Fused got = pool.candidates(9);
    const std::int32_t drawn = pool.draw(0.4);
    pool.read(others, weight);
    const Fused want = pool.candidates(9);
    CHECK(got.symbols == want.symbols);
    CHECK(got.logprobs == want.logprobs);
    CHECK(pool.draw(0.4) == drawn);

    ByteBeam one(std::make_shared<const ByteTrie>(vocab), {});
    ByteBeam other(std::make_shared<const ByteTrie>(vocab), {});
    one.row(one.begin(), row.data(), bits);
    other.row(other.begin(), masked.data());
    std::vector<float> here(logitfuse::kByteOutcomes);
    std::vector<float> there(logitfuse::kByteOutcomes);
    one.next(here);
    other.next(there);
    CHECK(here == there);
  }
}

TEST_CASE("a path that is left with nothing") {
  ByteBeam beam(std::make_shared<const ByteTrie>(support::vocab_of({{"a"}, {"b"}})), {});
  const Row row{0, 0};
  beam.row(beam.begin(), row.data(), bits_of({false, false}));
  std::vector<float> out(logitfuse::kByteOutcomes);
  beam.next(out);
  CHECK(std::all_of(out.begin(), out.end(), [](float p) { return p == -kInf; }));
  beam.push("a");
  CHECK(beam.dead());
}
