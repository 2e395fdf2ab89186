// The pool: N members' next-token rows and N weights become one distribution over symbols.
//
// A member's distribution is the softmax of its row over the tokens that can be emitted (text, byte
// and end tokens); the tokens of one symbol are summed.  On these distributions p_i, with weights
// w_i >= 0 normalised to sum 1:
//
//   linear       p(s) = sum_i w_i p_i(s)             a member without a twin of s contributes 0
//                                                    (linear opinion pool; Stone, 1961)
//   log-linear   p(s) = prod_i p_i(s)^{w_i} / Z      a member without a twin of s contributes
//                                                    exp(floor): doubt, but no veto
//                                                    (logarithmic pool; Genest & Zidek, 1986)
//
// A member of weight 0 is absent: its row is not read.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "logitfuse/alignment.hpp"

namespace logitfuse {

enum class PoolKind : std::uint8_t { linear, log_linear };

struct PoolOptions {
  PoolKind kind = PoolKind::linear;
  float floor = -16.0F;  ///< nats; log-linear only
};

/// Weights that sum to 1.  Throws FusionError: not one per member, negative, not finite, all zero.
std::vector<double> normalise_weights(std::span<const double> weights, std::size_t members);

/// Every candidate of the given number of best tokens per member.
inline constexpr std::int32_t kAll = std::numeric_limits<std::int32_t>::max();

/// The best symbols of one step, most probable first (equal: lower symbol first).
struct Fused {
  std::vector<std::int32_t> symbols;   ///< [n]
  std::vector<float> logprobs;         ///< [n], nats
  std::vector<float> member_logprobs;  ///< [members, n], nats; -inf: no twin; NaN: absent member
  float outside = 0.0F;                ///< nats; no symbol that is not listed is more probable
  bool partial = false;  ///< log-linear: normalised over these symbols, though there are others

  std::size_t size() const { return symbols.size(); }
};

/// How far a step is decided before any pooling (lossless for greedy decoding).
enum class Decision : std::uint8_t {
  open,     ///< only the pool can tell
  agree,    ///< all members' best symbols are the same
  certain,  ///< one symbol has more than half of the pooled probability (linear pool)
};

/// One step at a time over one alignment.  Owns its workspace: after the first steps nothing is
/// allocated.  Not for two threads at once.
class Pool {
 public:
  Pool(std::shared_ptr<const Alignment> alignment, PoolOptions options);

  /// Takes the rows of a step: logits, rows[m] is float32 [vocab(m).size()], borrowed until the
  /// next call; null allowed for a member of weight 0.  One pass for the maxima, one for the sums.
  /// Throws FusionError: weights that are negative, not finite, all zero or of the wrong count; a
  /// row with NaN or +inf or with nothing but -inf.
  void read(std::span<const float* const> rows, std::span<const double> weights);

  /// Whether the rows just read leave a greedy choice open; `symbol` is the answer if not.
  Decision decide(std::int32_t& symbol) const;

  /// The symbol that a member alone would choose; kNone for an absent member.
  std::int32_t best(std::size_t member) const;

  /// The symbols among the `top` best tokens of any member, the end symbol and the `forced` ones,
  /// scored by all members.  Symbols of probability 0 are left out.  Throws FusionError when none
  /// is left (log-linear members that exclude each other).
  const Fused& candidates(std::int32_t top, std::span<const std::int32_t> forced = {});

  /// One symbol as every member and the pool see it (linear pool only: the log-linear normaliser
  /// needs the candidates).  Result as `Fused` with one entry.
  const Fused& score(std::int32_t symbol);

  /// The whole union row: out[symbol] in nats, [alignment.size()]; -inf for symbols that cannot be
  /// emitted and for linear-pool probabilities below the smallest normal float32.
  void dense(std::span<float> out);

  const Alignment& alignment() const { return *alignment_; }

 private:
  struct Block {
    std::int32_t begin, end;  // token ids
  };
  struct Entry {
    float logit;
    std::int32_t id;
  };
  struct Member {
    std::vector<Block> blocks;         // the spans of the vocabulary in pieces of kBlock
    std::vector<float> block_max;      // [blocks]
    std::vector<float> ranked;         // scratch: maxima of groups of blocks
    std::vector<std::int32_t> chosen;  // scratch: blocks that may hold one of the `best`
    std::vector<Entry> best;           // the `top` best tokens
    std::vector<float> dense;          // [n_tokens], only after dense()
    const float* row = nullptr;        // null: absent
    float weight = 0.0F;
    float log_weight = 0.0F;
    float max = 0.0F;
    double sum = 0.0;      // of exp(logit - max)
    double log_sum = 0.0;  // so that log p = logit - max - log_sum
    float bound = 0.0F;    // log-prob that no token outside `best` exceeds
  };

  void measure(std::size_t m);
  void select(std::size_t m, std::int32_t top);
  void gather(std::size_t m);
  [[noreturn]] static void fail_excluded();
  void combine();
  void combine_linear();
  void combine_log_linear();
  double normalise(std::span<float> scores) const;  // in place; returns the log of the old sum
  bool known(std::int32_t symbol) const;            // some present member has a twin
  void sort();
  float logprob(std::size_t m, std::int32_t symbol) const;
  static double log_probability(const Member& member, float logit);
  float token_logprob(const Member& member, const Vocab& vocab, std::int32_t token) const;
  void add_candidate(std::int32_t symbol);
  void dense_member(std::size_t m);

  std::shared_ptr<const Alignment> alignment_;
  PoolOptions options_;
  std::vector<Member> members_;
  std::vector<std::uint32_t> seen_;  // [alignment.size()]: the step at which a symbol was added
  std::uint32_t step_ = 0;
  Fused fused_, sorted_;
  std::vector<float> peak_, scratch_;
  std::vector<std::int32_t> order_;
};

}  // namespace logitfuse
