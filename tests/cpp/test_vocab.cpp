#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "logitfuse/error.hpp"
#include "logitfuse/vocab.hpp"
#include "support.hpp"

using logitfuse::kNone;
using logitfuse::TokenKind;
using logitfuse::Vocab;
using logitfuse::VocabError;
using support::copy;
using support::Token;
using support::vocab_of;

using Ids = std::vector<std::int32_t>;

namespace {

const std::vector<Token> kTokens{
    {"b"},
    {"a", TokenKind::byte},
    {"</s>", TokenKind::end},
    {"a"},
    {""},
    {"<pad>", TokenKind::control},
    {"ab"},
    {"a"},
    {"<eot>", TokenKind::end},
    {std::string("a\0", 2)},
};

}  // namespace

TEST_CASE("a token without bytes can never be emitted") {
  const auto vocab = vocab_of(kTokens);
  CHECK(vocab->kind(4) == TokenKind::unused);
  CHECK(vocab->canonical(4) == kNone);
  CHECK(vocab_of({{"a"}, {"", TokenKind::end}})->kind(1) == TokenKind::end);
}

TEST_CASE("sorted by bytes, the canonical token of equal bytes first") {
  const auto vocab = vocab_of(kTokens);
  CHECK(copy(vocab->sorted()) == Ids{3, 7, 1, 9, 6, 0});
  CHECK(copy(vocab->end_ids()) == Ids{2, 8});
  CHECK(copy(vocab->shared()) == Ids{3, 2});
  CHECK(vocab->most_equal() == 3);
}

TEST_CASE("tokens of the same meaning are one chain") {
  const auto vocab = vocab_of(kTokens);
  for (const std::int32_t id : {1, 3, 7}) CHECK(vocab->canonical(id) == 3);
  CHECK(vocab->next_same(3) == 7);
  CHECK(vocab->next_same(7) == 1);
  CHECK(vocab->next_same(1) == kNone);
  CHECK(vocab->canonical(8) == 2);
  CHECK(vocab->next_same(2) == 8);
  CHECK(vocab->canonical(0) == 0);
  CHECK(vocab->canonical(5) == kNone);
}

TEST_CASE("lookup and prefixes compare whole strings, not just the first eight bytes") {
  const auto vocab =
      vocab_of({{"12345678"}, {"123456789"}, {std::string("12345678\0", 9)}, {"1234567"}, {"2"}});
  CHECK(copy(vocab->sorted()) == Ids{3, 0, 2, 1, 4});
  CHECK(vocab->lookup("12345678") == 0);
  CHECK(vocab->lookup(std::string("12345678\0", 9)) == 2);
  CHECK(vocab->lookup("1234567890") == kNone);
  CHECK(vocab->lookup("") == kNone);
  CHECK(vocab->prefix_range("12345678") == std::pair<std::size_t, std::size_t>{1, 4});
  CHECK(vocab->prefix_range("") == std::pair<std::size_t, std::size_t>{0, 5});
  CHECK(vocab->prefix_range("3") == std::pair<std::size_t, std::size_t>{5, 5});
}

TEST_CASE("bytes are unsigned") {
  CHECK(copy(vocab_of({{"\xFF"}, {"a"}, {"\x80"}})->sorted()) == Ids{1, 2, 0});
  CHECK(logitfuse::prefix_key("\xFF") > logitfuse::prefix_key("a"));
  CHECK(logitfuse::prefix_key("a") == 0x6100000000000000U);
}

TEST_CASE("spans hold the tokens that can be emitted") {
  const auto vocab = vocab_of(kTokens);
  REQUIRE(vocab->spans().size() == 2);
  CHECK(vocab->spans()[0].begin == 0);
  CHECK(vocab->spans()[0].end == 4);
  CHECK(vocab->spans()[1].begin == 6);
  CHECK(vocab->spans()[1].end == 10);
}

TEST_CASE("equal means the same bytes, cut in the same places, of the same kinds") {
  CHECK(*vocab_of({{"a"}, {"b"}}) == *vocab_of({{"a"}, {"b"}}));
  CHECK_FALSE(*vocab_of({{"a"}, {"b"}}) == *vocab_of({{"ab"}, {""}}));
  CHECK_FALSE(*vocab_of({{"a"}, {"b"}}) == *vocab_of({{"a"}, {"b", TokenKind::byte}}));
}

TEST_CASE("what makes no vocabulary") {
  const std::vector<TokenKind> two{TokenKind::text, TokenKind::text};
  const auto make = [&](const std::vector<std::int64_t>& offsets) {
    return Vocab("ab", offsets, two);
  };
  CHECK_NOTHROW(make({0, 1, 2}));
  CHECK_THROWS_WITH_AS(make({0, 2}), "a vocabulary of 2 tokens needs 3 offsets, not 2", VocabError);
  const std::vector<std::vector<std::int64_t>> crooked{{1, 1, 2}, {0, 2, 1}, {0, 1, 3}, {0, -1, 2}};
  for (const auto& offsets : crooked) CHECK_THROWS_AS(make(offsets), VocabError);
  CHECK_THROWS_AS(Vocab("", {0}, {}), VocabError);
  CHECK_THROWS_AS(vocab_of({{"<s>", TokenKind::control}, {""}}), VocabError);
}

TEST_CASE("UTF-8 that goes on") {
  const auto follows = logitfuse::continues_utf8;
  CHECK(follows("", "plain"));
  CHECK(follows("", "\xE2\x82\xAC"));
  CHECK(follows("\xE2\x82", "\xAC and more"));
  CHECK(follows("\xF0\x9F", "\x98"));            // may end inside a character again
  CHECK_FALSE(follows("\xE2\x82", "a"));         // cut short
  CHECK_FALSE(follows("", "\x82"));              // begins in the middle
  CHECK_FALSE(follows("", "\xC0\xAF"));          // overlong
  CHECK_FALSE(follows("\xE0", "\x80\x80"));      // overlong
  CHECK_FALSE(follows("\xED", "\xA0\x80"));      // surrogate
  CHECK_FALSE(follows("\xF4", "\x90\x80\x80"));  // beyond U+10FFFF
}

TEST_CASE("UTF-8 that is unfinished") {
  const auto unfinished = logitfuse::unfinished_utf8;
  CHECK(unfinished("") == 0);
  CHECK(unfinished("a") == 0);
  CHECK(unfinished("a\xE2") == 1);
  CHECK(unfinished("a\xE2\x82") == 2);
  CHECK(unfinished("a\xE2\x82\xAC") == 0);
  CHECK(unfinished("a\xF0\x9F\x98") == 3);
  CHECK(unfinished("a\xED\xA0") == 0);  // nothing can finish it
  CHECK(unfinished("\x82") == 0);
}
