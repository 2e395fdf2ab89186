#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "logitfuse/byte_beam.hpp"
#include "logitfuse/error.hpp"
#include "logitfuse/unit_search.hpp"
#include "support.hpp"

using logitfuse::ByteBeam;
using logitfuse::ByteTrie;
using logitfuse::FusionError;
using logitfuse::kByteEnd;
using logitfuse::kNone;
using logitfuse::PoolUnit;
using logitfuse::TokenKind;
using logitfuse::UnitSearch;
using logitfuse::Vocab;
using support::Row;
using support::Token;

namespace {

std::shared_ptr<const ByteTrie> trie_of(support::SharedVocab vocab) {
  return std::make_shared<const ByteTrie>(std::move(vocab));
}

Row logs(const std::vector<float>& probabilities) {
  Row row;
  for (const float p : probabilities) row.push_back(std::log(p));
  return row;
}

/// Gives every wanted path the same row; returns how many there were.
int feed(ByteBeam& beam, const Row& row) {
  int n = 0;
  for (; !beam.wanted().empty(); ++n) beam.row(beam.wanted().front().id, row.data());
  return n;
}

int push(ByteBeam& beam, std::string_view text, const Row& row) {
  int rows = 0;
  while (!text.empty() && !beam.dead()) {
    text.remove_prefix(beam.push(text));
    rows += feed(beam, row);
  }
  return rows;
}

std::vector<double> next(const ByteBeam& beam) {
  std::vector<float> out(logitfuse::kByteOutcomes);
  beam.next(out);
  std::vector<double> p;
  for (const float value : out) p.push_back(std::exp(static_cast<double>(value)));
  return p;
}

/// Compares a node and all below it with what the tokens say.
int check_node(const ByteTrie& trie, std::int32_t at, const std::string& string) {
  const Vocab& vocab = trie.vocab();
  const ByteTrie::Node& node = trie.node(at);
  int n = 1;
  for (std::int32_t p = 0; p < static_cast<std::int32_t>(vocab.sorted().size()); ++p) {
    const auto bytes = vocab.bytes(vocab.sorted()[static_cast<std::size_t>(p)]);
    CHECK((node.begin <= p && p < node.end) == bytes.starts_with(string));
    CHECK((node.begin <= p && p < node.ends) == (bytes == string));
  }
  int children = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string longer = string + static_cast<char>(byte);
    const std::int32_t child = trie.child(at, static_cast<std::uint8_t>(byte));
    const auto [first, last] = vocab.prefix_range(longer);
    CHECK((child == kNone) == (first == last));
    if (child == kNone) continue;
    CHECK(child == node.first_child + children);
    CHECK(trie.node(child).byte == byte);
    ++children;
    n += check_node(trie, child, longer);
  }
  CHECK(children == node.n_children);
  return n;
}

}  // namespace

TEST_CASE("a trie node is the range of the tokens that begin with its string") {
  std::mt19937 random(1);
  for (const std::size_t size : {1U, 2U, 10U, 80U}) {
    const auto trie = trie_of(support::random_vocab(random, size));
    CHECK(check_node(*trie, ByteTrie::kRoot, "") == static_cast<int>(trie->size()));
  }
}

TEST_CASE("a beam by hand") {
  // a: 1/2, ab: 1/4, end: 1/4, whatever came before.
  const auto vocab = support::vocab_of({{"a"}, {"ab"}, {"</s>", TokenKind::end}});
  const Row row = logs({0.5F, 0.25F, 0.25F});
  support::on_every_isa([&](std::string_view isa) {
    CAPTURE(isa);
    ByteBeam beam(trie_of(vocab), {.prune = 1e-9, .width = 8});
    CHECK(beam.dead());
    beam.begin();
    CHECK(feed(beam, row) == 1);
    auto p = next(beam);
    CHECK(p['a'] == doctest::Approx(0.75));
    CHECK(p[kByteEnd] == doctest::Approx(0.25));
    CHECK(push(beam, "a", row) == 1);  // a, or the beginning of ab
    CHECK(beam.hypotheses().size() == 2);
    p = next(beam);
    CHECK(p['b'] == doctest::Approx(1.0 / 3));
    CHECK(p['a'] == doctest::Approx(2.0 / 3 * 0.75));
    CHECK(p[kByteEnd] == doctest::Approx(2.0 / 3 * 0.25));
    CHECK(push(beam, "b", row) == 1);  // only ab
    CHECK(beam.hypotheses().size() == 1);
    CHECK(next(beam)['a'] == doctest::Approx(0.75));
    push(beam, "x", row);
    CHECK(beam.dead());
    CHECK(beam.best() == kNone);
    CHECK_THROWS_AS(next(beam), FusionError);
  });
}

TEST_CASE("a light path waits until it is needed") {
  const auto vocab = support::vocab_of({{"a"}, {"ab"}, {"c"}, {"b"}, {"</s>", TokenKind::end}});
  const Row row = logs({0.05F, 0.9F, 0.02F, 0.02F, 0.01F});
  const auto trie = trie_of(vocab);
  ByteBeam beam(trie, {.prune = 0.2, .width = 8});
  beam.begin();
  feed(beam, row);
  CHECK(push(beam, "a", row) == 0);
  CHECK(beam.waiting() == doctest::Approx(0.05 / 0.95));
  CHECK(next(beam)['b'] == doctest::Approx(0.9 / 0.95));
  SUBCASE("for a byte that the others spell it is given up") {
    CHECK(push(beam, "b", row) == 1);
    CHECK(beam.waiting() == 0.0);
    CHECK(next(beam)['a'] == doctest::Approx(0.95));
  }
  SUBCASE("for another byte it gets its row") {
    CHECK(beam.push("c") == 0);
    CHECK(beam.wanted().size() == 1);
    feed(beam, row);
    CHECK(next(beam)['c'] == doctest::Approx(0.05 / 0.95 * 0.02));
    CHECK(beam.push("c") == 1);
  }
  SUBCASE("or when it is woken") {
    beam.wake();
    CHECK(beam.waiting() == 0.0);
    CHECK_THROWS_AS(beam.push("b"), FusionError);
    CHECK(feed(beam, row) == 1);
    CHECK(next(beam)['b'] == doctest::Approx((0.9 + 0.05 * 0.02) / 0.95));
  }
}

TEST_CASE("two rows") {
  const auto vocab = support::vocab_of({{"a"}, {"ab"}, {"b"}, {"</s>", TokenKind::end}});
  ByteBeam beam(trie_of(vocab), {.prune = 0.01, .width = 2});
  const Row before = logs({0.2F, 0.6F, 0.1F, 0.1F});
  const Row after = logs({0.5F, 0.1F, 0.3F, 0.1F});
  beam.two_rows(before.data(), 0, after.data());
  const auto p = next(beam);
  CHECK(p['b'] == doctest::Approx((0.6 + 0.2 * 0.3) / 0.8));
  CHECK(p['a'] == doctest::Approx(0.2 * 0.6 / 0.8));
  CHECK(p[kByteEnd] == doctest::Approx(0.2 * 0.1 / 0.8));
  CHECK_THROWS_AS(beam.two_rows(before.data(), 3, after.data()), FusionError);
}

TEST_CASE("units of two members, by hand") {
  const auto one = support::vocab_of({{"a"}, {"bc"}, {"</s>", TokenKind::end}});
  const auto two = support::vocab_of({{"a"}, {"b"}, {"c"}, {"</s>", TokenKind::end}});
  auto first = std::make_shared<ByteBeam>(trie_of(one), logitfuse::BeamOptions{1e-9, 8});
  auto second = std::make_shared<ByteBeam>(trie_of(two), logitfuse::BeamOptions{1e-9, 8});
  first->begin();
  feed(*first, logs({0.5F, 0.4F, 0.1F}));
  second->begin();
  feed(*second, logs({0.2F, 0.3F, 0.4F, 0.1F}));
  const auto alignment = support::align({one, two});
  UnitSearch search(alignment, {first, second}, {});
  const std::vector<double> weights{1.0, 1.0};
  search.read(weights, {});
  const auto found = search.candidates(100, {});
  // Behind "b" the second member needs a row, so "bc" is no unit.
  const std::map<std::string, double> want{{"a", 0.35}, {"b", 0.35}, {"c", 0.2}, {"", 0.1}};
  REQUIRE(found.size() == want.size());
  for (std::size_t k = 0; k < found.size(); ++k) {
    const std::string unit(search.unit(found.symbols[k]));
    CHECK(std::exp(found.logprobs[k]) == doctest::Approx(want.at(unit)).epsilon(1e-4));
  }
  CHECK(found.outside == -support::kInf);
  search.read(std::vector<double>{1.0, 0.0}, {});
  const auto alone = search.candidates(1, {});  // "a"
  CHECK(search.unit(alone.symbols[0]) == "a");
  CHECK(std::isnan(alone.member_logprobs[1]));
  CHECK(alone.outside == doctest::Approx(std::log(0.4)));
  CHECK(search.unit(search.draw(0.6)) == "bc");
}

TEST_CASE("a beam at rest is dead, and begins again as if new") {
  ByteBeam beam(trie_of(support::vocab_of({{"a"}, {"ab"}, {"b"}, {"", TokenKind::end}})),
                logitfuse::BeamOptions{0.01, 4});
  const Row row = logs({0.4F, 0.3F, 0.2F, 0.1F});
  std::vector<std::vector<double>> beliefs;
  for (int round = 0; round < 2; ++round) {
    beam.begin();
    feed(beam, row);
    push(beam, "a", row);
    beliefs.push_back(next(beam));
    beam.rest();
    CHECK(beam.dead());
    CHECK(beam.wanted().empty());
    CHECK(beam.dropped().empty());
  }
  CHECK(beliefs[0] == beliefs[1]);
}

TEST_CASE("searches of random members do nothing that sanitizers mind") {
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    std::vector<support::SharedVocab> vocabs;
    std::vector<std::shared_ptr<const ByteBeam>> beams;
    for (int m = 0; m < 3; ++m) {
      vocabs.push_back(support::random_vocab(random, 40));
      const double prune = round % 2 == 0 ? 0.1 : 1e-6;
      auto beam = std::make_shared<ByteBeam>(trie_of(vocabs.back()),
                                             logitfuse::BeamOptions{prune, 1 + round % 8});
      beam->begin();
      feed(*beam, support::random_row(random, *vocabs.back()));
      for (const char byte : {'a', 'b', 'a'}) {
        push(*beam, {&byte, 1}, support::random_row(random, *vocabs.back()));
      }
      beams.push_back(std::move(beam));
    }
    std::vector<double> weights;
    for (const auto& beam : beams) weights.push_back(beam->dead() ? 0.0 : 1.0);
    if (std::count(weights.begin(), weights.end(), 0.0) == 3) continue;
    UnitSearch search(
        support::align(vocabs), beams,
        UnitSearch::Rule{{}, round % 3 == 0 ? PoolUnit::unit : PoolUnit::byte, nullptr});
    search.read(weights, {});
    for (const std::int32_t n : {1, 5, 1000}) {
      const auto found = search.candidates(n, std::vector<std::int32_t>{0, 1});
      for (const auto symbol : found.symbols) search.unit(symbol);
      CHECK(found.member_logprobs.size() == 3 * found.size());
    }
  }
}
