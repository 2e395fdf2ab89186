#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "logitfuse/error.hpp"
#include "logitfuse/pool.hpp"
#include "support.hpp"

using logitfuse::Decision;
using logitfuse::Fused;
using logitfuse::FusionError;
using logitfuse::kAll;
using logitfuse::kNone;
using logitfuse::Pool;
using logitfuse::PoolKind;
using logitfuse::TokenKind;
using support::align;
using support::kInf;
using support::kNaN;
using support::kPoolKinds;
using support::Row;
using support::vocab_of;

using Ids = std::vector<std::int32_t>;

namespace {

Row log_of(std::vector<float> probabilities) {
  for (float& p : probabilities) p = std::log(p);
  return probabilities;
}

double probability(float logprob) { return std::exp(static_cast<double>(logprob)); }

double sum_of(std::span<const float> logprobs) {
  return std::accumulate(logprobs.begin(), logprobs.end(), 0.0,
                         [](double sum, float logprob) { return sum + probability(logprob); });
}

float logprob_of(const Fused& fused, std::int32_t symbol) {
  for (std::size_t k = 0; k < fused.size(); ++k) {
    if (fused.symbols[k] == symbol) return fused.logprobs[k];
  }
  return -kInf;
}

// A pool that keeps the rows of its step alive.  An empty row is none.
class OwningPool : public Pool {
 public:
  using Pool::Pool;

  void read(std::vector<Row> rows, const std::vector<double>& weights) {
    rows_ = std::move(rows);
    std::vector<const float*> pointers;
    for (const Row& row : rows_) pointers.push_back(row.empty() ? nullptr : row.data());
    Pool::read(pointers, weights);
  }

 private:
  std::vector<Row> rows_;
};

// a b </s> <pad>   and   b c d; symbols: a b c d end
std::shared_ptr<const logitfuse::Alignment> two_members() {
  return align({vocab_of({{"a"}, {"b"}, {"</s>", TokenKind::end}, {"<pad>", TokenKind::control}}),
                vocab_of({{"b"}, {"c"}, {"d"}})});
}

const std::vector<Row> kRows{log_of({0.5F, 0.25F, 0.25F, 9.0F}), log_of({0.5F, 0.25F, 0.25F})};

}  // namespace

TEST_CASE("linear pool by hand") {
  support::on_every_isa([](std::string_view isa) {
    CAPTURE(isa);
    OwningPool pool(two_members(), {});
    pool.read(kRows, {3, 1});
    const Fused& fused = pool.candidates(kAll);
    CHECK(fused.symbols == Ids{0, 1, 4, 2, 3});
    const double want[] = {0.375, 0.3125, 0.1875, 0.0625, 0.0625};
    for (std::size_t k = 0; k < 5; ++k) {
      CHECK(probability(fused.logprobs[k]) == doctest::Approx(want[k]).epsilon(1e-6));
    }
    CHECK(fused.member_logprobs[5] == -kInf);  // the second member has no "a"
    CHECK(fused.outside == -kInf);
    Row dense(5);
    pool.dense(dense);
    for (std::size_t k = 0; k < 5; ++k) {
      const auto symbol = static_cast<std::size_t>(fused.symbols[k]);
      CHECK(dense[symbol] == doctest::Approx(fused.logprobs[k]).epsilon(1e-6));
    }
  });
}

TEST_CASE("log-linear pool by hand") {
  support::on_every_isa([](std::string_view isa) {
    CAPTURE(isa);
    OwningPool pool(two_members(), {PoolKind::log_linear, std::log(0.01F)});
    pool.read(kRows, {1, 1});
    const Fused& fused = pool.candidates(kAll);
    const double roots[] = {std::sqrt(0.005), std::sqrt(0.125), std::sqrt(0.0025),
                            std::sqrt(0.0025), std::sqrt(0.0025)};
    const double total = std::accumulate(std::begin(roots), std::end(roots), 0.0);
    for (std::int32_t symbol = 0; symbol < 5; ++symbol) {
      CHECK(probability(logprob_of(fused, symbol)) ==
            doctest::Approx(roots[symbol] / total).epsilon(1e-6));
    }
    CHECK_FALSE(fused.partial);
  });
}

TEST_CASE("log-linear members that exclude each other") {
  const auto vocab = vocab_of({{"a"}, {"b"}});
  OwningPool pool(align({vocab, vocab}), {PoolKind::log_linear});
  pool.read({{0.0F, -kInf}, {-kInf, 0.0F}}, {1, 1});
  CHECK_THROWS_AS(pool.candidates(1), FusionError);
  Row dense(2);
  CHECK_THROWS_AS(pool.dense(dense), FusionError);
}

TEST_CASE("a member of weight 0 is absent, and needs no row") {
  for (const PoolKind kind : kPoolKinds) {
    OwningPool pool(two_members(), {kind});
    pool.read({kRows[0], {}}, {1, 0});
    const Fused& fused = pool.candidates(kAll);
    CHECK(fused.symbols == Ids{0, 1, 4});
    CHECK(probability(fused.logprobs[0]) == doctest::Approx(0.5).epsilon(1e-6));
    CHECK(std::isnan(fused.member_logprobs[3]));
    Row dense(5);
    pool.dense(dense);
    CHECK(dense[2] == -kInf);
  }
}

TEST_CASE("equal bytes are summed, and so are the ends") {
  const auto vocab = vocab_of(
      {{"a"}, {"a", TokenKind::byte}, {"b"}, {"<x>", TokenKind::end}, {"<y>", TokenKind::end}});
  OwningPool pool(align({vocab}), {});
  pool.read({log_of({0.1F, 0.2F, 0.25F, 0.15F, 0.3F})}, {1});
  const Fused& fused = pool.candidates(kAll);
  CHECK(fused.symbols == Ids{3, 0, 2});
  CHECK(probability(fused.logprobs[0]) == doctest::Approx(0.45).epsilon(1e-6));
  CHECK(probability(fused.logprobs[1]) == doctest::Approx(0.3).epsilon(1e-6));
  std::int32_t symbol = kNone;
  CHECK(pool.decide(symbol) == Decision::agree);
  CHECK(symbol == 3);
}

TEST_CASE("candidates are the best tokens, the end and what is asked for") {
  OwningPool pool(two_members(), {});
  pool.read(kRows, {1, 1});
  CHECK(pool.candidates(1).symbols == Ids{1, 0, 4});
  const Ids forced{3, 3, 1};
  CHECK(pool.candidates(1, forced).symbols == Ids{1, 0, 3, 4});
  CHECK(pool.candidates(1).outside >= std::log(0.125F));
  for (const std::int32_t symbol : {-1, 5}) {
    CHECK_THROWS_AS(pool.candidates(1, Ids{symbol}), FusionError);
  }
  CHECK_THROWS_AS(pool.candidates(0), FusionError);
}

TEST_CASE("draws by hand") {
  support::on_every_isa([](std::string_view isa) {
    CAPTURE(isa);
    OwningPool pool(two_members(), {});
    CHECK(pool.draw(0.5) == kNone);  // nothing was read
    pool.read(kRows, {3, 1});
    // a b end, of 3/4 of the line, and b c d
    const std::pair<double, std::int32_t> want[] = {{0.0, 0},  {0.37, 0}, {0.38, 1}, {0.57, 4},
                                                    {0.74, 4}, {0.76, 1}, {0.88, 2}, {0.94, 3}};
    for (const auto& [place, symbol] : want) CHECK(pool.draw(place) == symbol);
    pool.reweigh(std::vector<double>{1, 0});
    CHECK(pool.draw(0.76) == 4);
    for (const double weight : {1.0, 0.1, 1.0 / 3}) {  // behind all by rounding, too
      pool.read(kRows, {weight, 0.2});
      CHECK(pool.draw(1.0 - 0x1.0p-53) == 3);
      CHECK(pool.draw(1.0) == 3);
    }
  });
}

TEST_CASE("decisions") {
  const auto vocab = vocab_of({{"a"}, {"b"}, {"c"}});
  OwningPool pool(align({vocab, vocab}), {});
  std::int32_t symbol = 7;
  pool.read({log_of({0.4F, 0.3F, 0.3F}), log_of({0.5F, 0.1F, 0.4F})}, {1, 1});
  CHECK(pool.decide(symbol) == Decision::agree);
  CHECK(symbol == 0);
  pool.read({log_of({0.4F, 0.3F, 0.3F}), log_of({0.1F, 0.8F, 0.1F})}, {1, 1});
  CHECK(pool.decide(symbol) == Decision::certain);
  CHECK(symbol == 1);
  pool.read({log_of({0.4F, 0.3F, 0.3F}), log_of({0.1F, 0.6F, 0.3F})}, {1, 1});
  CHECK(pool.decide(symbol) == Decision::open);
  CHECK(symbol == kNone);
  CHECK(pool.best(0) == 0);
  CHECK(pool.best(1) == 1);
}

TEST_CASE("the best symbols of a member alone") {
  // Three tokens of "c" make it second, and the end first; the pad is never said.
  const auto vocab = vocab_of({{"a"},
                               {"b"},
                               {"c"},
                               {"c"},
                               {"c"},
                               {"</s>", TokenKind::end},
                               {"<eot>", TokenKind::end},
                               {"<pad>", TokenKind::control}});
  OwningPool pool(align({vocab, vocab}), {});
  pool.read({log_of({0.2F, 0.0F, 0.1F, 0.1F, 0.1F, 0.25F, 0.25F, 9.0F}), {}}, {1, 0});
  const auto best = pool.best_of(0, 2);
  CHECK(best.size() == 2);
  CHECK(best[0].symbol == pool.alignment().end());
  CHECK(best[0].logprob == doctest::Approx(std::log(0.5)));
  CHECK(best[1].symbol == 2);
  CHECK(best[1].logprob == doctest::Approx(std::log(0.3)));
  CHECK(pool.best_of(0, kAll).size() == 3);  // "b" is impossible
  CHECK(pool.best_of(1, 2).empty());
  CHECK(pool.best_of(0, 0).empty());
}

TEST_CASE("on random steps") {
  std::mt19937 random(1);
  for (int round = 0; round < 60; ++round) {
    CAPTURE(round);
    std::vector<support::SharedVocab> vocabs;
    std::vector<Row> rows;
    std::vector<double> weights;
    const std::size_t members = 1 + random() % 3;
    const float spread = round % 3 == 0 ? 1e30F : 4.0F;
    for (std::size_t m = 0; m < members; ++m) {
      vocabs.push_back(support::random_vocab(random, 1 + random() % 1000));
      rows.push_back(support::random_row(random, *vocabs[m], spread));
      weights.push_back(1.0 + static_cast<double>(random() % 5));
    }
    const auto alignment = align(vocabs);
    for (const PoolKind kind : kPoolKinds) {
      OwningPool pool(alignment, {kind});
      if (kind == PoolKind::contrast) {  // nobody vetoes
        for (std::size_t m = 1; m < members; ++m) weights[m] *= -0.5;
      } else {
        for (double& weight : weights) weight = std::abs(weight);
      }
      pool.read(rows, weights);
      const Fused all = pool.candidates(kAll);
      CHECK(all.outside == -kInf);
      CHECK(sum_of(all.logprobs) == doctest::Approx(1.0).epsilon(1e-6));
      Row dense(static_cast<std::size_t>(alignment->size()));
      pool.dense(dense);
      CHECK(sum_of(dense) == doctest::Approx(1.0).epsilon(1e-6));
      const auto n = static_cast<std::int32_t>(1 + random() % 20);
      const Fused whole = pool.whole(n, Ids{all.symbols.back()});
      CHECK(whole.logprobs[0] == doctest::Approx(all.logprobs[0]).epsilon(1e-6));
      CHECK(std::is_sorted(whole.logprobs.rbegin(), whole.logprobs.rend()));
      CHECK(logprob_of(whole, all.symbols.back()) > -kInf);
      const Fused& some = pool.candidates(n);
      CHECK(std::is_sorted(some.logprobs.rbegin(), some.logprobs.rend()));
      if (kind == PoolKind::linear) {
        for (std::size_t k = 0; k < all.size(); ++k) {
          const float listed = logprob_of(some, all.symbols[k]);
          CHECK((listed == all.logprobs[k] || all.logprobs[k] <= some.outside));
        }
        std::int32_t decided = kNone;
        if (pool.decide(decided) != Decision::open) {
          CHECK(logprob_of(all, decided) >= all.logprobs[0] - 1e-6F);
          CHECK(pool.score(decided).logprobs[0] == logprob_of(all, decided));
        }
      }
    }
  }
}

TEST_CASE("same bits on every instruction set") {
  std::mt19937 random(2);
  std::vector<support::SharedVocab> vocabs;
  std::vector<Row> rows;
  for (const std::size_t size : {700U, 1500U}) {
    vocabs.push_back(support::random_vocab(random, size));
    rows.push_back(support::random_row(random, *vocabs.back()));
  }
  const auto alignment = align(vocabs);
  for (const PoolKind kind : kPoolKinds) {
    std::vector<Fused> fused;
    std::vector<Row> dense;
    std::vector<Ids> drawn;
    std::vector<Fused> whole;
    support::on_every_isa([&](std::string_view) {
      OwningPool pool(alignment, {kind});
      pool.read(rows, {1, 2});
      fused.push_back(pool.candidates(40));
      dense.emplace_back(static_cast<std::size_t>(alignment->size()));
      pool.dense(dense.back());
      whole.push_back(pool.whole(40));
      drawn.emplace_back();
      for (int k = 0; k < 200; ++k) drawn.back().push_back(pool.draw(k / 200.0));
    });
    for (std::size_t i = 1; i < fused.size(); ++i) {
      CHECK(fused[i].symbols == fused[0].symbols);
      CHECK(fused[i].logprobs == fused[0].logprobs);
      CHECK(fused[i].member_logprobs == fused[0].member_logprobs);
      CHECK(fused[i].outside == fused[0].outside);
      CHECK(dense[i] == dense[0]);
      CHECK(drawn[i] == drawn[0]);
      CHECK(whole[i].symbols == whole[0].symbols);
      CHECK(whole[i].logprobs == whole[0].logprobs);
    }
  }
}

TEST_CASE("the workspace of a failed step can be used again") {
  OwningPool pool(two_members(), {});
  pool.read(kRows, {1, 1});
  const Fused before = pool.candidates(kAll);
  CHECK_THROWS_AS(pool.read({kRows[0], {kNaN, 0, 0}}, {1, 1}), FusionError);
  pool.read(kRows, {1, 1});
  CHECK(pool.candidates(kAll).logprobs == before.logprobs);
}

TEST_CASE("errors name the member") {
  OwningPool pool(two_members(), {});
  const auto fails = [&](const Row& row, const std::vector<double>& weights, int member,
                         const char* what) {
    try {
      pool.read({kRows[0], row}, weights);
      FAIL("no error: " << what);
    } catch (const FusionError& error) {
      CHECK(error.member == member);
      CHECK(std::string(error.what()).find(what) != std::string::npos);
    }
  };
  fails({kNaN, 0, 0}, {1, 1}, 1, "NaN");
  fails({kNaN, -kInf, -kInf}, {1, 1}, 1, "NaN");
  fails({0, kInf, 0}, {1, 1}, 1, "+inf");
  fails({-kInf, -kInf, -kInf}, {1, 1}, 1, "nothing but -inf");
  fails({}, {1, 1}, 1, "no row");
  fails(kRows[1], {1, -1}, 1, "weight of member 1");
  fails(kRows[1], {std::nan(""), 1}, 0, "weight of member 0");
  fails(kRows[1], {1}, FusionError::kNoMember, "expected 2 weights");
  fails(kRows[1], {0, 0}, FusionError::kNoMember, "finite sum above 0");
  CHECK_THROWS_AS(pool.read({kRows[0]}, {1, 1}), FusionError);
  Row short_row(4);
  pool.read(kRows, {1, 1});
  CHECK_THROWS_AS(pool.dense(short_row), FusionError);
  for (const float floor : {1.0F, -kInf, kNaN}) {
    CHECK_THROWS_AS(Pool(two_members(), {PoolKind::log_linear, floor}), FusionError);
  }
}

TEST_CASE("a small matrix") {
  const std::vector<float> matrix = log_of({0.5F, 0.25F, 0.25F, 0.1F, 0.8F, 0.1F});
  const auto pooled = [&](PoolKind kind, const std::vector<double>& weights) {
    logitfuse::PoolOptions options{kind};
    options.exponent = -1.0F;
    Row out(3);
    logitfuse::combine(options, weights, matrix, out);
    return out;
  };
  const auto is = [](const Row& got, const std::vector<double>& want) {
    const double total = std::accumulate(want.begin(), want.end(), 0.0);
    for (std::size_t k = 0; k < want.size(); ++k) {
      CHECK(probability(got[k]) == doctest::Approx(want[k] / total).epsilon(1e-6));
    }
  };
  support::on_every_isa([&](std::string_view isa) {
    CAPTURE(isa);
    is(pooled(PoolKind::linear, {1, 3}), {0.8, 2.65, 0.55});
    is(pooled(PoolKind::log_linear, {2, 2}), {std::sqrt(0.05), std::sqrt(0.2), std::sqrt(0.025)});
    is(pooled(PoolKind::power, {1, 1}), {1 / 12.0, 1 / 5.25, 1 / 14.0});
    is(pooled(PoolKind::min, {1, 9}), {0.1, 0.25, 0.1});
    is(pooled(PoolKind::product, {2, 1}), {0.025, 0.05, 0.00625});
    is(pooled(PoolKind::contrast, {1, -1}), {5, 0.3125, 2.5});
    is(pooled(PoolKind::contrast, {-1, 1}), {0.2, 3.2, 0.4});
  });
  Row out(3);
  std::vector<float> holes = matrix;
  holes[4] = kNaN;
  const std::vector<double> weights{1, 1};
  CHECK_THROWS_AS(logitfuse::combine({}, weights, holes, out), FusionError);
  holes[3] = holes[5] = kNaN;  // now the second is absent
  logitfuse::combine({}, weights, holes, out);
  is(out, {0.5, 0.25, 0.25});
  CHECK_THROWS_AS(logitfuse::combine({}, std::vector<double>{0, 1}, holes, out), FusionError);
  CHECK_THROWS_AS(logitfuse::combine({}, std::vector<double>{1}, holes, out), FusionError);
  holes[0] = 0.1F;
  CHECK_THROWS_AS(logitfuse::combine({}, weights, holes, out), FusionError);
}

TEST_CASE("weights are normalised") {
  const std::vector<double> weights{1, 3};
  const auto normalise = logitfuse::normalise_weights;
  CHECK(normalise(PoolKind::linear, weights, 2) == std::vector<double>{0.25, 0.75});
  CHECK(normalise(PoolKind::product, weights, 2) == weights);
  CHECK_THROWS_AS(normalise(PoolKind::linear, weights, 3), FusionError);
  const std::vector<double> negative{-1, -3};
  for (const PoolKind kind : kPoolKinds) CHECK_THROWS_AS(normalise(kind, negative, 2), FusionError);
  CHECK(normalise(PoolKind::contrast, std::vector<double>{-1, 3}, 2)[0] == -1);
}
