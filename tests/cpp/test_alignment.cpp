#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "logitfuse/alignment.hpp"
#include "logitfuse/error.hpp"
#include "support.hpp"

using logitfuse::kNone;
using logitfuse::TokenKind;
using support::align;
using support::copy;
using support::vocab_of;

using Ids = std::vector<std::int32_t>;

TEST_CASE("the union of two vocabularies, and one end") {
  const auto alignment = align({
      vocab_of({{"b"}, {"a"}, {"</s>", TokenKind::end}, {"a", TokenKind::byte}}),
      vocab_of({{"<s>", TokenKind::control},
                {"c"},
                {"a"},
                {"<x>", TokenKind::end},
                {"<y>", TokenKind::end}}),
  });
  REQUIRE_FALSE(alignment->identical());
  CHECK(alignment->size() == 4);
  CHECK(alignment->end() == 3);
  CHECK(alignment->bytes(0) == "a");
  CHECK(alignment->bytes(1) == "b");
  CHECK(alignment->bytes(2) == "c");
  CHECK(alignment->bytes(3).empty());
  CHECK(copy(alignment->to_symbol(0)) == Ids{1, 0, 3, 0});
  CHECK(copy(alignment->to_symbol(1)) == Ids{kNone, 2, 0, 3, 3});
  CHECK(copy(alignment->to_token(0)) == Ids{1, 0, kNone, 2});
  CHECK(copy(alignment->to_token(1)) == Ids{2, kNone, 1, 3});
  CHECK(alignment->lookup("c") == 2);
  CHECK(alignment->lookup("d") == kNone);
  CHECK(alignment->lookup("") == kNone);
}

TEST_CASE("the union is in order also behind the first eight bytes") {
  const auto alignment =
      align({vocab_of({{"12345678b"}, {"12345678"}}), vocab_of({{"12345678c"}, {"12345678a"}})});
  CHECK(copy(alignment->to_symbol(0)) == Ids{2, 0});
  CHECK(copy(alignment->to_symbol(1)) == Ids{3, 1});
  CHECK(alignment->lookup("12345678a") == 1);
}

TEST_CASE("equal vocabularies need no maps") {
  const auto make = [] { return vocab_of({{"b"}, {"a"}, {"a"}, {"</s>", TokenKind::end}}); };
  const auto alignment = align({make(), make()});
  CHECK(alignment->identical());
  CHECK(alignment->size() == 4);
  CHECK(alignment->end() == 3);
  CHECK(alignment->to_symbol(0).empty());
  CHECK(alignment->to_token(1).empty());
  CHECK(alignment->symbol(1, 2) == 1);
  CHECK(alignment->twin(1, 1) == 1);
  CHECK(alignment->twin(1, 2) == kNone);
  CHECK(alignment->lookup("a") == 1);
}

TEST_CASE("without ends there is no end symbol") {
  CHECK(align({vocab_of({{"a"}})})->end() == kNone);
  CHECK(align({vocab_of({{"a"}}), vocab_of({{"b"}})})->end() == kNone);
  const auto alignment = align({vocab_of({{"a"}}), vocab_of({{"e", TokenKind::end}})});
  CHECK(alignment->size() == 2);
  CHECK(alignment->twin(0, 1) == kNone);
  CHECK(alignment->twin(1, 1) == 0);
}

TEST_CASE("maps are inverse to each other on random vocabularies") {
  std::mt19937 random(1);
  for (int round = 0; round < 20; ++round) {
    std::vector<support::SharedVocab> vocabs;
    for (std::size_t m = 0; m < 3; ++m) {
      vocabs.push_back(support::random_vocab(random, 1 + random() % 200));
    }
    const auto alignment = align(vocabs);
    std::string previous;
    for (std::int32_t symbol = 0; symbol < alignment->size(); ++symbol) {
      if (symbol == alignment->end()) continue;
      const std::string bytes(alignment->bytes(symbol));
      CHECK(previous < bytes);
      CHECK(alignment->lookup(bytes) == symbol);
      previous = bytes;
    }
    for (std::size_t m = 0; m < 3; ++m) {
      for (std::int32_t token = 0; token < vocabs[m]->size(); ++token) {
        const std::int32_t symbol = alignment->symbol(m, token);
        CHECK((symbol == kNone) == (vocabs[m]->canonical(token) == kNone));
        if (symbol == kNone) continue;
        CHECK(alignment->twin(m, symbol) == vocabs[m]->canonical(token));
        if (symbol != alignment->end()) CHECK(alignment->bytes(symbol) == vocabs[m]->bytes(token));
      }
    }
  }
}

TEST_CASE("no vocabulary, no alignment") {
  CHECK_THROWS_AS(logitfuse::Alignment({}), logitfuse::VocabError);
}
