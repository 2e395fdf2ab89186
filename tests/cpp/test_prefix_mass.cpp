#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "logitfuse/error.hpp"
#include "logitfuse/prefix_mass.hpp"
#include "support.hpp"

using logitfuse::boundary_probability;
using logitfuse::TokenKind;
using support::Row;
using support::Token;
using support::vocab_of;

TEST_CASE("the share of a token among those that begin with its bytes") {
  const auto vocab = vocab_of({{"hel"},
                               {"hello"},
                               {"he"},
                               {"help"},
                               {"hel", TokenKind::byte},
                               {"hel</s>", TokenKind::end},
                               {"<pad>", TokenKind::control}});
  Row row;
  for (const float p : {0.1F, 0.2F, 0.4F, 0.1F, 0.1F, 0.05F, 0.05F}) row.push_back(std::log(p));
  support::on_every_isa([&](std::string_view isa) {
    CAPTURE(isa);
    CHECK(boundary_probability(*vocab, row.data(), 0) == doctest::Approx(0.4));
    CHECK(boundary_probability(*vocab, row.data(), 4) == doctest::Approx(0.4));
    CHECK(boundary_probability(*vocab, row.data(), 1) == 1.0);
    CHECK(boundary_probability(*vocab, row.data(), 2) == doctest::Approx(0.4 / 0.9));
  });
  CHECK(boundary_probability(*vocab, row.data(), 5) == 1.0);
  CHECK(boundary_probability(*vocab, row.data(), 6) == 1.0);
}

TEST_CASE("more continuations than fit a buffer") {
  std::vector<Token> tokens{{"a"}};
  for (int n = 0; n < 2500; ++n) tokens.push_back({"a" + std::to_string(n)});
  const auto vocab = vocab_of(tokens);
  Row row(tokens.size(), 0.0F);
  row[0] = std::log(2500.0F);
  CHECK(boundary_probability(*vocab, row.data(), 0) == doctest::Approx(0.5).epsilon(1e-6));
}

TEST_CASE("a range without probability has no answer") {
  const auto vocab = vocab_of({{"a"}, {"ab"}, {"b"}});
  const Row row{-support::kInf, -support::kInf, 0.0F};
  CHECK(std::isnan(boundary_probability(*vocab, row.data(), 0)));
  CHECK(boundary_probability(*vocab, row.data(), 2) == 1.0);
}

TEST_CASE("tokens out of range") {
  const auto vocab = vocab_of({{"a"}});
  const Row row{0.0F};
  for (const std::int32_t token : {-1, 1}) {
    CHECK_THROWS_AS(boundary_probability(*vocab, row.data(), token), logitfuse::VocabError);
  }
}
