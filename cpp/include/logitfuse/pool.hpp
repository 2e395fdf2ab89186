// The pool: N members' next-token rows and N weights become one distribution over symbols.
//
// A member's distribution is the softmax of its row over the tokens that can be emitted (text, byte
// and end tokens); the tokens of one symbol are summed.  What becomes of these distributions is the
// business of `pool_formulas.hpp`.  A member of weight 0 is absent: its row is not read.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "logitfuse/alignment.hpp"
#include "logitfuse/allowed.hpp"
#include "logitfuse/pool_formulas.hpp"

namespace logitfuse {

/// Every candidate of the given number of best tokens per member.
inline constexpr std::int32_t kAll = std::numeric_limits<std::int32_t>::max();

/// The best symbols of one step, most probable first (equal: lower symbol first).
struct Fused {
  std::vector<std::int32_t> symbols;   ///< [n]
  std::vector<float> logprobs;         ///< [n], nats
  std::vector<float> member_logprobs;  ///< [members, n], nats; -inf: no twin; NaN: absent member
  float outside = 0.0F;                ///< nats; no symbol that is not listed is more probable
  bool partial = false;                ///< normalised over these symbols, though there are others

  std::size_t size() const { return symbols.size(); }
};

/// A symbol as one member alone sees it.
struct Own {
  std::int32_t symbol;
  float logprob;  ///< nats
};

/// How far a step is decided before any pooling (lossless for greedy decoding).
enum class Decision : std::uint8_t {
  open,     ///< only the pool can tell
  agree,    ///< all members' best symbols are the same
  certain,  ///< one symbol has more than half of the pooled probability (linear pool)
};

/// One step at a time over one alignment.  Owns its workspace: after the first steps nothing is
/// allocated.  Not for two threads at once.
///
/// With `PoolOptions::union_top` (UniTE, arXiv 2410.03777) the candidates are the whole support:
/// the symbols among that many best tokens of each member present, the end, and the forced ones.
/// Every member's distribution is normalised on it.  A member without a twin of a symbol backs off
/// to its longest token that is a proper prefix of it.  What a token has is shared by its own
/// symbol (if listed) and all that back off to it, in proportion to the mean probability that those
/// others give them who have twins (if nobody has one of its own symbol: that which the token has),
/// so that nothing counts twice.  `Fused::member_logprobs` stay what the members say.
class Pool {
 public:
  /// Throws FusionError on options out of range.
  Pool(std::shared_ptr<const Alignment> alignment, PoolOptions options);

  /// From now on, what a member says of a symbol is the probability of its twin, and
  /// `p(t) * weights[j]` of every token t among its `top` best with `symbols[j]` being the symbol,
  /// offsets[t] <= j < offsets[t + 1] (a sparse projection of embeddings; EVA, Xu et al., NAACL
  /// 2024).  The symbols become candidates.  `Fused::outside` also allows for what the other tokens
  /// could add to one symbol.  Replaces the member's earlier projection.
  /// offsets [n_tokens + 1], symbols and weights [offsets.back()], of a token at most 1 together.
  /// Throws FusionError: sizes, symbols or weights out of range; a pool with `union_top`.
  void project(std::size_t member, std::vector<std::int64_t> offsets,
               std::vector<std::int32_t> symbols, std::span<const float> weights);

  /// From now on only symbols with a twin in this member are candidates (kNone: all again); as many
  /// more best tokens are looked at as it takes to find some.  Where there are projections or a
  /// pivot, every pool is normalised over the candidates.
  /// Throws FusionError: no such member; a pool with `union_top`.
  void restrict_to(std::int32_t pivot);

  /// Takes the rows of a step: logits, rows[m] is float32 [vocab(m).size()], borrowed until the
  /// next call; null allowed for a member of weight 0.  One pass for the maxima, one for the sums.
  ///
  /// `allowed`, one per member (empty: all tokens) or none at all, says which tokens may come at
  /// this step; bits of absent members count too where there is a pivot.  The others have no
  /// probability, every member is normalised over those that it is left with, and one that is left
  /// with none is absent.  The pools that add probabilities (linear) or powers of them count a
  /// member by what it gave to the allowed tokens: theirs is the distribution without the
  /// constraint, restricted and normalised.
  ///
  /// Throws FusionError: weights as in `check_weights`; a row with NaN or +inf or with nothing but
  /// -inf; nobody is left with a token.
  void read(std::span<const float* const> rows, std::span<const double> weights,
            std::span<const TokenBits> allowed = {});

  /// New weights for the rows just read, which are not read again.  A member that was absent then
  /// stays so; others may come and go.  Throws FusionError: weights as in `check_weights`, a weight
  /// for a row that was not read.
  void reweigh(std::span<const double> weights);

  /// Whether the rows just read leave a greedy choice open; `symbol` is the answer if not.  The
  /// contrast and the consistency pool never say: what all like best may not be their choice.  Nor
  /// does any pool with `union_top`, projections or a pivot.
  Decision decide(std::int32_t& symbol) const;

  /// The symbol that the linear pool is certain to choose whatever members say that are absent here
  /// and have the weight `rest_weight` together, on the scale of the weights as given; else kNone.
  /// Other pools, and such as are adapted, are never certain.  Throws FusionError: negative or not
  /// finite.
  std::int32_t certain_without(double rest_weight);

  /// The symbol that a member alone would choose; kNone for an absent member.
  std::int32_t best(std::size_t member) const;

  /// The `n` symbols that a member alone finds most probable, `best` first (equal: lower symbol
  /// first); symbols of probability 0 are left out.  Nothing for an absent member.
  std::vector<Own> best_of(std::size_t member, std::int32_t n);

  /// The symbol at this place, 0 <= place < 1, of all tokens of all members laid out one behind the
  /// other, each as long as it is probable: a draw from the linear pool (not adapted), without
  /// listing anything.
  std::int32_t draw(double place) const;

  /// The symbols among the `top` best tokens of any member, the end symbol and the `forced` ones,
  /// scored by all members; of a contrast also the best of its base.  Symbols of probability 0 are
  /// left out.  Throws FusionError when none is left (members that exclude each other).
  const Fused& candidates(std::int32_t top, std::span<const std::int32_t> forced = {});

  /// The `n` best symbols and the `forced` ones, normalised over all symbols (where the pool is
  /// adapted: all its candidates).  Costs as much as `dense`, and sorts no more than it lists.
  /// Throws FusionError: as `candidates`.
  const Fused& whole(std::int32_t n, std::span<const std::int32_t> forced = {});

  /// One symbol as every member and the pool see it (linear pool only: the other ones'
  /// normaliser needs the candidates, see `whole`).  Result as `Fused` with one entry.
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
  struct Projection {
    std::vector<std::int64_t> offsets;  // [n_tokens + 1]; empty: none
    std::vector<std::int32_t> symbols;
    std::vector<double> log_weights;
    double most = 0.0;  // of the weights
  };
  struct Member {
    std::vector<Block> blocks;         // the spans of the vocabulary in pieces of kBlock
    std::vector<float> block_max;      // [blocks]
    std::vector<float> ranked;         // scratch: maxima of groups of blocks
    std::vector<std::int32_t> chosen;  // scratch: blocks that may hold one of the `best`
    std::vector<Entry> best;           // the `top` best tokens
    std::vector<float> dense;          // [n_tokens], only after dense()
    const float* row = nullptr;        // null: not read
    bool present = false;
    double weight = 0.0;
    float log_weight = 0.0F;
    float max = 0.0F;
    double sum = 0.0;      // of exp(logit - max)
    double log_sum = 0.0;  // so that log p = logit - max - log_sum
    float bound = 0.0F;    // log-prob that no token outside `best` exceeds
    Projection projection;
    std::vector<std::uint8_t> allowed;  // bits of the tokens that may come; empty: all
    std::vector<float> kept;            // [n_tokens], the row with nothing but those
    double log_allowed = 0.0;           // of their probability in the row as it was
  };

  void weigh(std::span<const double> weights, double total);
  void measure(std::size_t m);
  bool sum_up(std::size_t m);
  void constrain(std::size_t m);
  void credit();
  void select(std::size_t m, std::int32_t top);
  void gather(std::size_t m);
  void combine();
  void fill_missing();
  std::size_t base() const;
  bool adapted() const { return options_.union_top > 0 || pivot_ != kNone || projects_; }
  bool fills() const { return options_.union_top > 0 || formula_.missing() != Missing::zero; }
  void add_targets(std::size_t m);
  void add_projected(std::size_t m);
  std::int32_t longest_prefix(std::size_t m, std::int32_t symbol) const;
  void back_off();
  void share(std::size_t m);
  double mean_of_others(std::size_t m, std::size_t k) const;
  bool is_before(std::int32_t a, std::int32_t b) const;
  void order_possible();
  void sort();
  void report();
  float logprob(std::size_t m, std::int32_t symbol) const;
  static std::int32_t token_at(const Member& member, double mass);
  static double log_probability(const Member& member, float logit);
  float token_logprob(const Member& member, const Vocab& vocab, std::int32_t token) const;
  void add_candidate(std::int32_t symbol);
  void check_symbols(std::span<const std::int32_t> symbols) const;
  void score_all();
  void gather_all(std::size_t m);
  void dense_linear(std::span<float> out);
  void dense_member(std::size_t m);

  std::shared_ptr<const Alignment> alignment_;
  PoolOptions options_;
  Formula formula_;
  double scale_ = 1.0;  // what the weights as given were divided by
  std::vector<Member> members_;
  std::vector<std::uint32_t> seen_;  // [alignment.size()]: the step at which a symbol was added
  std::uint32_t step_ = 0;
  Fused fused_, sorted_;
  bool constrained_ = false;  // something is not allowed at this step
  bool projects_ = false;
  std::int32_t pivot_ = kNone;
  std::vector<std::int32_t> place_;    // [alignment.size()] where projected: index among candidates
  std::vector<double> mass_;           // [candidates] scratch
  std::vector<std::int32_t> spelled_;  // [members, candidates]: twin or longest prefix, or kNone
  std::vector<float> filled_;          // [members, candidates]: as the formula wants it
  std::vector<float> known_;           // [candidates]: the most that a present member says of it
  std::vector<Vote> votes_;            // of the members present
  std::vector<float> bounds_;          // of the members present
  std::vector<std::int32_t> order_;
};

}  // namespace logitfuse
