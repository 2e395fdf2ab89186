#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

#include "../../cpp/src/math.hpp"
#include "logitfuse/byte_gate.hpp"
#include "logitfuse/error.hpp"
#include "logitfuse/fitting.hpp"
#include "support.hpp"

using logitfuse::ByteGate;
using logitfuse::ByteHistory;
using logitfuse::ByteMatrices;
using logitfuse::CriticalGate;
using logitfuse::exp64_of;
using logitfuse::Fit;
using logitfuse::fit_linear;
using logitfuse::FusionError;
using logitfuse::gate_features;
using logitfuse::gate_features_size;
using logitfuse::kByteSymbols;
using logitfuse::OnlineWeights;
using support::kInf;
using support::kNaN;
using support::Row;

namespace {

using Doubles = std::vector<double>;

// Normalised log-probabilities of the next byte, some of them -inf.
Row random_bytes(std::mt19937& random) {
  std::normal_distribution<float> normal(0.0F, 3.0F);
  Row row;
  double sum = 0.0;
  for (std::size_t b = 0; b < kByteSymbols; ++b) {
    row.push_back(random() % 10 == 0 ? -kInf : normal(random));
    sum += std::exp(static_cast<double>(row.back()));
  }
  for (float& value : row) value -= static_cast<float>(std::log(sum));
  return row;
}

std::vector<float> features_of(const std::vector<const float*>& rows, const Row& history) {
  std::vector<float> out(gate_features_size(rows.size()));
  gate_features(rows, history, out);
  return out;
}

}  // namespace

TEST_CASE("exp64_of is the exponential") {
  for (double x = -707.9; x < 709.0; x += 0.0371) {
    CHECK(exp64_of(x) == doctest::Approx(std::exp(x)).epsilon(1e-15));
  }
  CHECK(exp64_of(0.0) == 1.0);
  CHECK(exp64_of(-1e300) == 0.0);
  CHECK(exp64_of(-std::numeric_limits<double>::infinity()) == 0.0);
  CHECK(std::isinf(exp64_of(710.0)));
  CHECK(std::isnan(exp64_of(std::nan(""))));
}

TEST_CASE("a fit has a small gap and is better than any other weights") {
  std::mt19937 random(1);
  std::normal_distribution<double> normal(-3.0, 3.0);
  for (std::size_t members = 1; members <= 8; ++members) {
    const std::size_t n = 200;
    Doubles table;
    for (std::size_t k = 0; k < n * members; ++k) table.push_back(normal(random));
    const Fit fit = fit_linear(table, members, 1e-10);
    CHECK(fit.gap <= 1e-10);
    CHECK(fit.iterations < 300);
    const auto likelihood = [&](const Doubles& w) {
      double sum = 0.0;
      for (std::size_t t = 0; t < n; ++t) {
        double p = 0.0;
        for (std::size_t m = 0; m < members; ++m) p += w[m] * std::exp(table[t * members + m]);
        sum += std::log(p);
      }
      return sum;
    };
    CHECK(fit.log_likelihood == doctest::Approx(likelihood(fit.weights)));
    for (std::size_t m = 0; m < members; ++m) {
      Doubles moved = fit.weights;
      for (double& weight : moved) weight *= 0.99;
      moved[m] += 0.01;
      CHECK(likelihood(moved) <= fit.log_likelihood + 1e-7);
    }
  }
}

TEST_CASE("fits refuse what cannot be fitted") {
  CHECK_THROWS_AS(fit_linear(Doubles{}, 0, 1e-9), FusionError);
  CHECK_THROWS_AS(fit_linear(Doubles{-1.0, -1.0}, 2, 1e-9), FusionError);
  CHECK_THROWS_AS(fit_linear(Doubles{-1.0}, 1, 0.0), FusionError);
  CHECK_THROWS_AS(fit_linear(Doubles{std::nan("")}, 1, 1e-9), FusionError);
  ByteMatrices nothing;
  CHECK_THROWS_AS(logitfuse::fit_log_linear(nothing, 1e-9), FusionError);
}

TEST_CASE("log-linear fits are the same on every instruction set") {
  std::mt19937 random(2);
  const std::size_t n = 50;
  std::vector<Row> matrices(2);
  std::vector<std::uint8_t> text;
  std::vector<std::int32_t> at;
  for (std::size_t t = 0; t < n; ++t) {
    text.push_back(static_cast<std::uint8_t>(random() % 256));
    at.push_back(static_cast<std::int32_t>(t));
    for (Row& matrix : matrices) {
      const Row row = random_bytes(random);
      matrix.insert(matrix.end(), row.begin(), row.end());
    }
  }
  const ByteMatrices data{{matrices[0].data(), matrices[1].data()}, text, at};
  const Fit first = logitfuse::fit_log_linear(data, 1e-7);
  CHECK(first.gap <= 1e-7);
  support::on_every_isa([&](std::string_view) {
    const Fit fit = logitfuse::fit_log_linear(data, 1e-7);
    CHECK(fit.weights == first.weights);
    CHECK(fit.log_likelihood == first.log_likelihood);
  });
}

TEST_CASE("online weights learn who is right and forgive") {
  OnlineWeights online(Doubles{1.0, 1.0}, {1.0, 0.0});
  CHECK(online.observe(Doubles{std::log(0.9), std::log(0.3)}, 1) == doctest::Approx(std::log(0.6)));
  CHECK(online.weights()[0] == doctest::Approx(0.75));
  CHECK(std::isnan(online.observe(Doubles{std::nan(""), std::nan("")}, 1)));
  CHECK(online.weights()[0] == doctest::Approx(0.75));
  const double impossible = -std::numeric_limits<double>::infinity();
  CHECK(online.observe(Doubles{impossible, impossible}, 1) == impossible);
  CHECK(online.weights()[0] == doctest::Approx(0.75));
  online.observe(Doubles{impossible, -1.0}, 1);
  CHECK(online.weights() == Doubles{0.0, 1.0});
  online.reset();
  CHECK(online.weights() == Doubles{0.5, 0.5});
  OnlineWeights sharing(Doubles{1.0, 3.0}, {1.0, 0.5});
  sharing.observe(Doubles{impossible, -1.0}, 2);
  CHECK(sharing.weights()[0] == doctest::Approx(0.75 * 0.25));
}

TEST_CASE("features are what they are called") {
  std::mt19937 random(3);
  const Row a = random_bytes(random);
  Row b = a;
  std::swap(b[0], b[200]);
  const Row history{-1.5F, kNaN};
  const auto features = features_of({a.data(), b.data()}, history);
  REQUIRE(features.size() == 9);
  double entropy = 0.0;
  for (const float value : a) {
    if (value != -kInf)
      entropy -= std::exp(static_cast<double>(value)) * static_cast<double>(value);
  }
  Row sorted = a;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  CHECK(features[0] == doctest::Approx(entropy).epsilon(1e-5));
  CHECK(features[1] == doctest::Approx(sorted[0]).epsilon(1e-5));
  CHECK(features[2] == doctest::Approx(sorted[0] - sorted[1]).epsilon(1e-5));
  CHECK(features[3] == doctest::Approx(features[0]));
  const bool agree = std::max_element(a.begin(), a.end()) - a.begin() ==
                     std::max_element(b.begin(), b.end()) - b.begin();
  CHECK(features[6] == (agree ? 1.0F : 0.0F));
  CHECK(features[7] == -1.5F);
  CHECK(std::isnan(features[8]));
  Row sure(kByteSymbols, -kInf);
  sure[7] = 0.0F;
  const Row nothing(kByteSymbols, -kInf);
  const auto edge = features_of({sure.data(), nullptr, nothing.data()}, {kNaN, kNaN, kNaN});
  CHECK(edge[0] == 0.0F);
  CHECK(edge[1] == 0.0F);
  CHECK(edge[2] == 16.0F);
  for (std::size_t f = 3; f < 12; ++f) CHECK(std::isnan(edge[f]));
  Row broken = a;
  broken[3] = kNaN;
  CHECK_THROWS_AS(features_of({broken.data()}, {kNaN}), FusionError);
}

TEST_CASE("a history is a mean that forgets") {
  ByteHistory history(2);
  CHECK(std::isnan(history.values()[0]));
  history.observe(Row{-1.0F, -kInf});
  CHECK(history.values()[0] == -1.0F);
  CHECK(history.values()[1] == -16.0F);
  history.observe(Row{-3.0F, kNaN});
  CHECK(history.values()[0] == doctest::Approx((0.9 * -1.0 - 3.0) / 1.9));
  CHECK(history.values()[1] == -16.0F);
  history.reset();
  CHECK(std::isnan(history.values()[1]));
}

TEST_CASE("gates are the same on every instruction set") {
  std::mt19937 random(4);
  std::normal_distribution<double> normal(0.0, 0.3);
  const std::size_t members = 3;
  const std::size_t features = gate_features_size(members);
  Doubles bias, matrix, centre;
  for (std::size_t m = 0; m < members; ++m) bias.push_back(normal(random));
  for (std::size_t k = 0; k < members * features; ++k) matrix.push_back(normal(random));
  for (std::size_t f = 0; f < features; ++f) centre.push_back(normal(random));
  const ByteGate gate(bias, matrix, centre);
  const CriticalGate critical(0.1, {0.5, -0.2, 0.3}, {1.0, -1.0, 2.0});
  for (int round = 0; round < 20; ++round) {
    std::vector<Row> rows;
    for (std::size_t m = 0; m < members; ++m) rows.push_back(random_bytes(random));
    const std::vector<const float*> pointers{rows[0].data(), rows[1].data(),
                                             round % 3 == 0 ? nullptr : rows[2].data()};
    const Row history{-1.0F, -2.0F, round % 2 == 0 ? kNaN : -0.5F};
    Doubles first(members), again(members);
    gate.weights(pointers, history, first);
    CHECK(first[0] + first[1] + first[2] == doctest::Approx(1.0));
    CHECK((first[2] == 0.0) == (round % 3 == 0));
    const double asked = critical.probability(pointers[0]);
    support::on_every_isa([&](std::string_view) {
      gate.weights(pointers, history, again);
      CHECK(again == first);
      CHECK(critical.probability(pointers[0]) == asked);
    });
  }
  Doubles out(members);
  const std::vector<const float*> nobody(members, nullptr);
  CHECK_THROWS_AS(gate.weights(nobody, Row(members, 0.0F), out), FusionError);
}

TEST_CASE("gates refuse numbers that do not fit") {
  const Doubles four(4, 0.0);
  CHECK_NOTHROW(ByteGate({0.0}, four, four));
  CHECK_THROWS_AS(ByteGate({}, {}, {}), FusionError);
  CHECK_THROWS_AS(ByteGate({0.0, 0.0}, four, four), FusionError);
  CHECK_THROWS_AS(ByteGate({0.0}, four, {0.0}), FusionError);
  CHECK_THROWS_AS(ByteGate({std::nan("")}, four, four), FusionError);
  CHECK_THROWS_AS(ByteGate(Doubles(17), Doubles(17 * 204), Doubles(204)), FusionError);
  CHECK_THROWS_AS(CriticalGate(std::nan(""), {}, {}), FusionError);
}
