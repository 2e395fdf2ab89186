#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "logitfuse/kernels.hpp"

using logitfuse::available_isas;
using logitfuse::kBlock;
using logitfuse::Kernels;
using logitfuse::kernels;

namespace {

using Row = std::vector<float>;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kMinNormal = std::numeric_limits<float>::min();
constexpr float kMinSubnormal = std::numeric_limits<float>::denorm_min();

/// Run `check` on the table of every instruction set that this machine has.
template <typename Check>
void on_every_isa(Check check) {
  for (const std::string_view isa : available_isas()) {
    CAPTURE(isa);
    check(kernels(isa));
  }
}

/// Equal bits; a NaN equals any NaN (C++ does not say which payload survives an addition).
bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}
bool same(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}
bool same(const Row& a, const Row& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return same(x, y); });
}

/// The distance of `got` from `want` in units in the last place of a float32 near `want`.
double ulps(float got, double want) {
  const int exponent = want == 0.0 ? -149 : std::max(std::ilogb(want) - 23, -149);
  return std::abs(static_cast<double>(got) - want) / std::ldexp(1.0, exponent);
}

/// Every `stride`-th float32 from `first` to `last` in the order of their bits.
Row sweep(float first, float last, std::uint32_t stride) {
  Row row;
  const std::uint32_t end = std::bit_cast<std::uint32_t>(last);
  for (std::uint32_t bits = std::bit_cast<std::uint32_t>(first); bits < end; bits += stride) {
    row.push_back(std::bit_cast<float>(bits));
  }
  row.push_back(last);
  return row;
}

Row normal_row(std::mt19937& random, std::size_t n, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  Row row(n);
  for (float& x : row) x = normal(random);
  return row;
}

float max_of(const Row& x) {
  float best = -kInf;
  for (const float value : x) best = std::isnan(value) ? best : std::max(best, value);
  return best;
}

double sum_exp_reference(const Row& x, float shift) {
  double sum = 0.0;
  for (const float value : x) sum += std::exp(static_cast<double>(value - shift));
  return sum;
}

struct Special {
  float x;
  float want;
};

}  // namespace

TEST_CASE("exp_shifted is within its ulp bound") {
  Row x = sweep(-0.0f, -87.33f, 1009);
  x.push_back(-0x1.769da2p+2f);  // the worst of all the arguments there are
  on_every_isa([&](const Kernels& k) {
    Row y(x.size());
    k.exp_shifted(x.data(), x.size(), 0.0f, 1.0f, y.data());
    double worst = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      worst = std::max(worst, ulps(y[i], std::exp(static_cast<double>(x[i]))));
    }
    CHECK(worst <= logitfuse::kExpMaxUlp);
  });
}

TEST_CASE("log is within its ulp bound, subnormals included") {
  Row x = sweep(kMinSubnormal, kMax, 2003);
  const Row near_one = sweep(0.5f, 2.0f, 61);  // where the result is small and the exponent changes
  x.insert(x.end(), near_one.begin(), near_one.end());
  x.push_back(0x1.55d47cp+0f);  // the worst of all the arguments there are
  on_every_isa([&](const Kernels& k) {
    Row y(x.size());
    k.log(x.data(), x.size(), y.data());
    double worst = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      worst = std::max(worst, ulps(y[i], std::log(static_cast<double>(x[i]))));
    }
    CHECK(worst <= logitfuse::kLogMaxUlp);
  });
}

TEST_CASE("exp_shifted of special values") {
  const Special table[] = {
      {0.0f, 1.0f},    {-0.0f, 1.0f},  {-kMinSubnormal, 1.0f}, {-kMinNormal, 1.0f}, {-1e-9f, 1.0f},
      {-87.34f, 0.0f}, {-88.0f, 0.0f}, {-103.9f, 0.0f},        {-104.0f, 0.0f},     {-200.0f, 0.0f},
      {-264.8f, 0.0f}, {-1e4f, 0.0f},  {-8388608.f, 0.0f},     {-1e30f, 0.0f},      {-kMax, 0.0f},
      {-kInf, 0.0f},   {kNan, kNan},   {-kNan, kNan},
  };
  on_every_isa([&](const Kernels& k) {
    for (const Special& s : table) {
      CAPTURE(s.x);
      // Alone, and in the middle of a row: the vector body and the tail are not the same code.
      float alone = s.x;
      k.exp_shifted(&alone, 1, 0.0f, 1.0f, &alone);
      CHECK(same(alone, s.want));
      Row row(99, s.x);
      k.exp_shifted(row.data(), row.size(), 0.0f, 1.0f, row.data());
      CHECK(same(row, Row(99, s.want)));
    }
  });
}

TEST_CASE("exp_shifted takes any NaN for NaN") {
  on_every_isa([&](const Kernels& k) {
    Row row(64);
    for (std::uint32_t i = 0; i < 64; ++i) row[i] = std::bit_cast<float>(0x7fc00000u + i * 0x7fffu);
    k.exp_shifted(row.data(), row.size(), 1.0f, 0.5f, row.data());
    CHECK(same(row, Row(64, kNan)));
  });
}

TEST_CASE("exp_shifted never gives a subnormal and keeps all that is normal") {
  const Row x = sweep(-60.0f, -110.0f, 37);
  for (const float scale : {0.0f, 1e-30f, 1e-6f, 0.3f, 0.99999994f, 1.0f, 1.0000001f, 7.0f}) {
    CAPTURE(scale);
    on_every_isa([&](const Kernels& k) {
      Row y(x.size());
      k.exp_shifted(x.data(), x.size(), 0.0f, scale, y.data());
      bool right = true;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double exp = std::exp(static_cast<double>(x[i]));
        const double want = static_cast<double>(scale) * exp;
        const bool small = std::min(exp, want) < 1.0001 * static_cast<double>(kMinNormal);
        const bool flushed = same(y[i], 0.0f);
        right &= flushed ? small : y[i] >= kMinNormal && ulps(y[i], want) <= 2.0;
      }
      CHECK(right);
    });
  }
}

TEST_CASE("exp_shifted gives no subnormal next to the bound, whatever the scale") {
  std::mt19937 random(5);
  for (int round = 0; round < 1000; ++round) {
    const float scale = std::ldexp(1.0f + 0x1p-24f * static_cast<float>(random() >> 8),
                                   -static_cast<int>(random() % 120));
    float x = std::log(kMinNormal) - std::log(scale);
    Row row;
    for (int step = 0; step < 20; ++step) x = std::nextafter(x, -kInf);
    for (int step = 0; step < 40; ++step) row.push_back(x = std::nextafter(x, kInf));
    CAPTURE(scale);
    on_every_isa([&](const Kernels& k) {
      Row y(row.size());
      k.exp_shifted(row.data(), row.size(), 0.0f, scale, y.data());
      CHECK(std::all_of(y.begin(), y.end(),
                        [](float value) { return value == 0.0f || value >= kMinNormal; }));
    });
  }
}

TEST_CASE("log of special values") {
  const float log_of_max = static_cast<float>(std::log(static_cast<double>(kMax)));
  const Special table[] = {
      {0.0f, -kInf},      {-0.0f, -kInf},         {1.0f, 0.0f},        {kInf, kInf},
      {kMax, log_of_max}, {-1.0f, kNan},          {-kMinNormal, kNan}, {-kMax, kNan},
      {-kInf, kNan},      {-kMinSubnormal, kNan}, {kNan, kNan},        {-kNan, kNan},
  };
  on_every_isa([&](const Kernels& k) {
    for (const Special& s : table) {
      CAPTURE(s.x);
      float alone = s.x;
      k.log(&alone, 1, &alone);
      CHECK(same(alone, s.want));
      Row row(99, s.x);
      k.log(row.data(), row.size(), row.data());
      CHECK(same(row, Row(99, s.want)));
    }
  });
}

TEST_CASE("sum_exp is within its relative error") {
  std::mt19937 random(7);
  std::vector<Row> rows;
  for (std::size_t n = 0; n <= 300; ++n) rows.push_back(normal_row(random, n, 4.0f));
  for (const std::size_t n : {4095u, 49152u, 151936u, 1u << 20}) {
    rows.push_back(normal_row(random, n, 4.0f));
  }
  // Rows whose roundings all go the same way: equal terms, and terms that only just count.
  for (const float x : {-0.3f, -0.05f, -1.7f, -5.97f, -12.3f}) {
    rows.emplace_back(100'000, x);
    rows.back()[777] = 0.0f;
  }
  rows.emplace_back(1 << 20, 0.0f);
  rows.emplace_back(1 << 20, -30.0f);
  rows.back()[0] = 0.0f;
  rows.emplace_back(10'000, -kInf);
  rows.back()[9'999] = 3.0f;
  rows.push_back(sweep(-1e-3f, -85.0f, 4001));

  on_every_isa([&](const Kernels& k) {
    double worst = 0.0;
    for (const Row& row : rows) {
      const float shift = row.empty() ? 0.0f : max_of(row);
      const double want = sum_exp_reference(row, shift);
      const double error = std::abs(k.sum_exp(row.data(), row.size(), shift) - want);
      worst = std::max(worst, want == 0.0 ? error : error / want);
    }
    CHECK(worst <= logitfuse::kSumExpMaxRelative);
  });
}

TEST_CASE("sum_exp of -inf, of terms too small, and of NaN") {
  on_every_isa([&](const Kernels& k) {
    CHECK(same(k.sum_exp(nullptr, 0, 0.0f), 0.0));
    for (const float x : {-kInf, -kMax, -1e9f, -104.0f, -88.0f, -87.34f}) {
      const Row row(131, x);
      CHECK(same(k.sum_exp(row.data(), row.size(), 0.0f), 0.0));
    }
    for (std::size_t i = 0; i < 131; ++i) {
      Row row(131, i % 2 == 0 ? -kInf : -1.0f);
      row[i] = kNan;
      CHECK(std::isnan(k.sum_exp(row.data(), row.size(), 0.0f)));
    }
  });
}

TEST_CASE("block_max: every length, NaN skipped, nothing written past the last block") {
  std::mt19937 random(11);
  on_every_isa([&](const Kernels& k) {
    bool right = true;
    for (std::size_t n = 0; n <= 3 * kBlock + 5; ++n) {
      Row x = normal_row(random, n, 4.0f);
      for (std::size_t i = random() % 50; i < n; i += 50) x[i] = i % 3 == 0 ? -kInf : kNan;
      Row want;
      for (std::size_t begin = 0; begin < n; begin += kBlock) {
        const std::size_t end = std::min(begin + kBlock, n);
        const auto at = [&](std::size_t i) { return x.begin() + static_cast<std::ptrdiff_t>(i); };
        want.push_back(max_of(Row(at(begin), at(end))));
      }
      want.push_back(1234.0f);
      Row got(want.size(), 1234.0f);
      right &= same(k.block_max(x.data(), n, got.data()), max_of(x)) && same(got, want);
    }
    CHECK(right);
  });
}

TEST_CASE("block_max finds the max at every place, and of special values") {
  on_every_isa([&](const Kernels& k) {
    constexpr std::size_t n = kBlock + 37;
    for (const float most : {-1.0f, kMax, kInf}) {
      bool right = true;
      for (std::size_t i = 0; i < n; ++i) {
        Row x(n, -2.0f);
        x[i] = most;
        float out[2];
        right &= same(k.block_max(x.data(), n, out), most) && same(out[i / kBlock], most) &&
                 same(out[1 - i / kBlock], -2.0f);
      }
      CHECK(right);
    }
    for (const float x : {kNan, -kInf}) {
      float out[2];
      CHECK(same(k.block_max(Row(n, x).data(), n, out), -kInf));
      CHECK(same(out[0], -kInf));
      CHECK(same(out[1], -kInf));
    }
  });
}

TEST_CASE("at_least: every length, NaN is none, -inf is where the threshold is") {
  std::mt19937 random(19);
  on_every_isa([&](const Kernels& k) {
    bool right = true;
    for (std::size_t n = 0; n <= 2 * kBlock + 5; ++n) {
      Row x = normal_row(random, n, 4.0f);
      for (std::size_t i = random() % 50; i < n; i += 50) x[i] = i % 3 == 0 ? -kInf : kNan;
      for (const float threshold : {-kInf, -4.0f, 0.0f, 9.0f, n > 0 ? x[n / 2] : 0.0f, kInf}) {
        std::vector<std::int32_t> want;
        for (std::size_t i = 0; i < n; ++i) {
          if (x[i] >= threshold) want.push_back(static_cast<std::int32_t>(i));
        }
        std::vector<std::int32_t> got(n + 1, -5);
        const std::size_t count = k.at_least(x.data(), n, threshold, got.data());
        right &= count == want.size() && std::equal(want.begin(), want.end(), got.begin()) &&
                 got[n] == -5;
      }
    }
    CHECK(right);
  });
}

TEST_CASE("axpy rounds the product before the sum") {
  std::mt19937 random(13);
  on_every_isa([&](const Kernels& k) {
    for (std::size_t n = 0; n < 100; ++n) {
      const Row x = normal_row(random, n, 1.0f);
      Row acc = normal_row(random, n, 1.0f);
      Row want = acc;
      for (std::size_t i = 0; i < n; ++i) {
        const volatile float product = 0.37f * x[i];  // volatile: no FMA here either
        want[i] += product;
      }
      k.axpy(0.37f, x.data(), n, acc.data());
      CHECK(same(acc, want));
    }
  });
}

TEST_CASE("every instruction set gives the bits of the baseline") {
  std::mt19937 random(17);
  const Kernels& base = kernels("baseline");
  const float specials[] = {kNan, -kInf, kInf, 0.0f, -0.0f, kMinSubnormal, -1e-40f, kMax, -kMax};
  for (int round = 0; round < 400; ++round) {
    const std::size_t start = random() % 17;  // vectors that do not begin at their alignment
    const std::size_t n = round < 390 ? random() % 600 : 20'000 + random() % 2'000;
    Row storage = normal_row(random, start + n, round % 2 == 0 ? 4.0f : 60.0f);
    if (round % 4 > 1) {
      for (std::size_t i = random() % 40; i < storage.size(); i += 1 + random() % 40) {
        storage[i] = specials[random() % std::size(specials)];
      }
    }
    const float* x = storage.data() + start;
    const float shift = std::min(max_of(storage), 1e30f);
    CAPTURE(round);
    CAPTURE(start);
    CAPTURE(n);

    // All outputs of one table, one after the other.
    const auto run = [&](const Kernels& k) {
      const std::size_t blocks = (n + kBlock - 1) / kBlock;
      Row out(start + 3 * n + blocks + 1);
      float* next = out.data() + start;
      k.exp_shifted(x, n, shift, 0.37f, next);
      k.log(x, n, next + n);
      std::copy(x, x + n, next + 2 * n);
      k.axpy(-1.7f, next, n, next + 2 * n);
      next[3 * n + blocks] = k.block_max(x, n, next + 3 * n);
      return out;
    };
    const Row want = run(base);
    on_every_isa([&](const Kernels& k) {
      CHECK(same(run(k), want));
      CHECK(same(k.sum_exp(x, n, shift), base.sum_exp(x, n, shift)));
    });
  }
}

TEST_CASE("set_isa changes the table in use; an unknown name is an error that lists the known") {
  const std::string before = kernels().isa;
  CHECK(available_isas().front() == "baseline");
  for (const std::string_view isa : available_isas()) {
    logitfuse::set_isa(isa);
    CHECK(kernels().isa == isa);
    CHECK(&kernels() == &kernels(isa));
  }
  for (const char* unknown : {"", "avx2", "baseline "}) {
    CHECK_THROWS_AS(kernels(unknown), std::invalid_argument);
    CHECK_THROWS_WITH_AS(logitfuse::set_isa(unknown), doctest::Contains("available: baseline"),
                         std::invalid_argument);
  }
  CHECK(kernels().isa == available_isas().back());  // the error changed nothing
  logitfuse::set_isa(before);
}
