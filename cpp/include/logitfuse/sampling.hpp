// From a fused distribution to one symbol, in llama.cpp's default order and with its meaning:
// logit bias, penalties | top-k, typical-p, top-p, min-p, temperature, draw.
//
// llama.cpp's samplers work on logits; here the pooled log-probabilities are the logits.  The part
// before the bar (the processors) changes the distribution that users see; the part behind it
// chooses from it.
#pragma once

#include <cstdint>
#include <deque>
#include <random>
#include <span>
#include <vector>

#include "logitfuse/pool.hpp"

namespace logitfuse {

struct SamplingOptions {
  float temperature = 0.8F;  ///< 0: greedy
  std::int32_t top_k = 40;   ///< <= 0: off
  float top_p = 0.95F;       ///< 1: off
  float min_p = 0.05F;       ///< 0: off
  float typical_p = 1.0F;    ///< 1: off (Meister et al., arXiv 2202.00666)
  float repeat_penalty = 1.0F;
  float frequency_penalty = 0.0F;
  float presence_penalty = 0.0F;
  std::int32_t penalty_last_n = 64;  ///< symbols looked back at
  std::uint64_t seed = 0;
};

struct Bias {
  std::int32_t symbol;
  float value;  ///< nats added; -inf forbids
};

class Sampler {
 public:
  Sampler(SamplingOptions options, std::vector<Bias> biases);

  /// The text went on with this symbol (for the penalties).
  void accept(std::int32_t symbol);

  /// Symbols that `process` may change: they must be among the candidates it is given.
  std::span<const std::int32_t> touched() const { return touched_; }

  /// Applies bias and penalties, normalises over all symbols (listed or not) and sorts again.
  /// Throws FusionError when everything listed is forbidden.
  void process(Fused& fused) const;

  /// Index of the chosen symbol, or kNone when the unlisted symbols could change the choice: list
  /// more of them and ask again (the random state has not moved).
  std::int32_t draw(const Fused& fused);

  /// The choice that `draw` makes: what is left after truncation as indices into `fused`, with
  /// probabilities that sum to 1.  False where `draw` gives kNone.
  bool filter(const Fused& fused);
  std::span<const std::int32_t> kept() const { return kept_; }
  std::span<const float> probabilities() const { return probabilities_; }

  bool greedy() const { return options_.temperature <= 0.0F; }
  bool processes() const;
  /// Nothing is changed and nothing is left out: a draw from the pool itself.
  bool plain() const;
  /// The next random number, in [0, 1).
  double uniform();

 private:
  void touch();
  void keep_typical();
  void keep_top_p(double total);
  double weigh(float temperature);

  SamplingOptions options_;
  std::vector<Bias> biases_;
  std::deque<std::int32_t> history_;
  std::vector<std::int32_t> touched_;
  std::mt19937_64 random_;
  std::vector<std::int32_t> kept_;
  std::vector<float> logits_, probabilities_;
};

}  // namespace logitfuse
