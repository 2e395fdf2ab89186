#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "logitfuse/error.hpp"
#include "logitfuse/pool.hpp"
#include "logitfuse/sampling.hpp"
#include "support.hpp"

using logitfuse::Bias;
using logitfuse::Fused;
using logitfuse::FusionError;
using logitfuse::kNone;
using logitfuse::Sampler;
using logitfuse::SamplingOptions;
using support::copy;
using support::kInf;

using Ids = std::vector<std::int32_t>;

namespace {

// One member's probabilities, most probable first; `outside` bounds what is not listed.
Fused fused_of(std::vector<float> probabilities, float outside = 0.0F) {
  Fused fused;
  for (const float p : probabilities) {
    fused.symbols.push_back(static_cast<std::int32_t>(fused.symbols.size()));
    fused.logprobs.push_back(std::log(p));
  }
  fused.member_logprobs = fused.logprobs;
  fused.outside = std::log(outside);
  return fused;
}

SamplingOptions off() {
  SamplingOptions options;
  options.temperature = 1.0F;
  options.top_k = 0;
  options.top_p = 1.0F;
  options.min_p = 0.0F;
  return options;
}

const Fused kListed = fused_of({0.5F, 0.25F, 0.15F, 0.1F});

Ids kept(SamplingOptions options, const Fused& fused) {
  Sampler sampler(options, {});
  return sampler.filter(fused) ? copy(sampler.kept()) : Ids{};
}

}  // namespace

TEST_CASE("each filter alone") {
  SamplingOptions options = off();
  CHECK(kept(options, kListed) == Ids{0, 1, 2, 3});
  options.top_k = 3;
  CHECK(kept(options, kListed) == Ids{0, 1, 2});
  options = off();
  options.top_p = 0.7F;
  CHECK(kept(options, kListed) == Ids{0, 1});
  options.top_p = 0.0F;
  CHECK(kept(options, kListed) == Ids{0});
  options = off();
  options.min_p = 0.25F;
  CHECK(kept(options, kListed) == Ids{0, 1, 2});
  options = off();
  options.typical_p = 0.3F;  // the entropy is 1.21, the surprises 0.69, 1.39, 1.90 and 2.30
  CHECK(kept(options, kListed) == Ids{0, 1});
  options.temperature = 0.0F;
  CHECK(kept(options, kListed) == Ids{0});
}

TEST_CASE("temperature sharpens") {
  SamplingOptions options = off();
  options.temperature = 0.5F;
  Sampler sampler(options, {});
  REQUIRE(sampler.filter(kListed));
  const double total = 0.25 + 0.0625 + 0.0225 + 0.01;
  CHECK(sampler.probabilities()[0] == doctest::Approx(0.25 / total).epsilon(1e-6));
  CHECK(sampler.probabilities()[3] == doctest::Approx(0.01 / total).epsilon(1e-6));
}

TEST_CASE("a short list is refused where what it lacks could be chosen") {
  const Fused sure = fused_of({0.5F, 0.25F, 0.15F}, 0.05F);
  const Fused unsure = fused_of({0.5F, 0.25F, 0.15F}, 0.2F);
  const auto enough = [](const SamplingOptions& options, const Fused& fused) {
    return !kept(options, fused).empty();
  };
  SamplingOptions options = off();
  CHECK_FALSE(enough(options, sure));
  options.top_k = 3;
  CHECK(enough(options, sure));
  CHECK_FALSE(enough(options, unsure));
  options.top_k = 4;
  CHECK_FALSE(enough(options, sure));
  options = off();
  options.top_p = 0.7F;
  CHECK(enough(options, unsure));
  options.top_p = 0.95F;
  CHECK_FALSE(enough(options, sure));
  options.top_p = 0.5F;  // met by 0.4 and 0.2, but what is not listed may come before 0.2
  CHECK_FALSE(enough(options, fused_of({0.4F, 0.2F, 0.1F}, 0.25F)));
  CHECK(enough(options, fused_of({0.4F, 0.2F, 0.1F}, 0.15F)));
  Fused partial = unsure;
  partial.partial = true;  // its probabilities are not shares of the whole
  options.top_p = 0.7F;
  CHECK_FALSE(enough(options, partial));
  options = off();
  options.min_p = 0.2F;
  CHECK(enough(options, sure));
  CHECK_FALSE(enough(options, unsure));
  options = off();
  options.temperature = 0.0F;
  CHECK(enough(options, unsure));
  CHECK_FALSE(enough(options, fused_of({0.3F, 0.2F}, 0.4F)));
  Sampler sampler(off(), {});
  CHECK(sampler.draw(sure) == kNone);
}

TEST_CASE("bias and penalties, and the mass that is not listed") {
  SamplingOptions options = off();
  options.presence_penalty = 1.0F;
  options.frequency_penalty = 0.5F;
  Sampler sampler(options, {Bias{2, 1.0F}});
  sampler.accept(0);
  sampler.accept(0);
  CHECK(sampler.processes());
  CHECK(copy(sampler.touched()) == Ids{2, 0, 0});
  Fused fused = fused_of({0.5F, 0.2F, 0.1F}, 0.1F);
  sampler.process(fused);
  const double a = 0.5 * std::exp(-2.0);
  const double c = 0.1 * std::exp(1.0);
  const double total = a + 0.2 + c + 0.2;  // 0.2 is not listed
  CHECK(fused.symbols == Ids{2, 1, 0});
  CHECK(std::exp(fused.logprobs[0]) == doctest::Approx(c / total).epsilon(1e-5));
  CHECK(std::exp(fused.logprobs[1]) == doctest::Approx(0.2 / total).epsilon(1e-5));
  CHECK(std::exp(fused.logprobs[2]) == doctest::Approx(a / total).epsilon(1e-5));
  CHECK(std::exp(fused.outside) == doctest::Approx(0.1 / total).epsilon(1e-5));
  CHECK(fused.member_logprobs[0] == std::log(0.1F));  // moved along
  CHECK_FALSE(fused.partial);
  fused.partial = true;
  sampler.process(fused);
  CHECK(fused.partial);
}

TEST_CASE("the repeat penalty scales the logarithm") {
  SamplingOptions options = off();
  options.repeat_penalty = 2.0F;
  Sampler sampler(options, {});
  sampler.accept(0);
  Fused fused = fused_of({0.5F, 0.3F, 0.2F});
  sampler.process(fused);
  CHECK(std::exp(fused.logprobs[0]) == doctest::Approx(0.3 / 0.75).epsilon(1e-5));
  CHECK(fused.symbols == Ids{1, 0, 2});
}

TEST_CASE("a forbidden symbol is gone, and everything cannot be forbidden") {
  Sampler one(off(), {Bias{1, -kInf}});
  Fused fused = kListed;
  one.process(fused);
  CHECK(fused.symbols == Ids{0, 2, 3});
  Sampler all(off(), {Bias{0, -kInf}});
  Fused only = fused_of({1.0F});
  CHECK_THROWS_AS(all.process(only), FusionError);
}

TEST_CASE("only the last symbols count") {
  SamplingOptions options = off();
  options.presence_penalty = 1.0F;
  options.penalty_last_n = 2;
  Sampler sampler(options, {});
  for (const std::int32_t symbol : {4, 5, 6}) sampler.accept(symbol);
  CHECK(copy(sampler.touched()) == Ids{5, 6});
  options.penalty_last_n = 0;
  Sampler forgetful(options, {});
  forgetful.accept(1);
  CHECK(forgetful.touched().empty());
}

TEST_CASE("draws are the standard's random numbers in [0, 1)") {
  SamplingOptions options = off();
  options.seed = 5489;
  Sampler sampler(options, {});
  const Fused uniform = fused_of(std::vector<float>(16, 0.0625F));
  std::mt19937_64 random(5489);
  for (int n = 0; n < 1000; ++n) {
    CHECK(sampler.draw(uniform) == static_cast<std::int32_t>(random() >> 60));
  }
}

TEST_CASE("options out of range") {
  const auto fails = [](auto change) {
    SamplingOptions options = off();
    change(options);
    CHECK_THROWS_AS(Sampler(options, {}), FusionError);
  };
  fails([](SamplingOptions& o) { o.temperature = kInf; });
  fails([](SamplingOptions& o) { o.top_p = 1.5F; });
  fails([](SamplingOptions& o) { o.top_p = support::kNaN; });
  fails([](SamplingOptions& o) { o.min_p = -0.1F; });
  fails([](SamplingOptions& o) { o.typical_p = 0.0F; });
  fails([](SamplingOptions& o) { o.repeat_penalty = 0.0F; });
  fails([](SamplingOptions& o) { o.frequency_penalty = kInf; });
  fails([](SamplingOptions& o) { o.presence_penalty = support::kNaN; });
  CHECK_THROWS_AS(Sampler(off(), {Bias{0, kInf}}), FusionError);
  CHECK_THROWS_AS(Sampler(off(), {Bias{0, support::kNaN}}), FusionError);
  Sampler sampler(off(), {});
  CHECK_THROWS_AS((void)sampler.filter(Fused{}), FusionError);
}
