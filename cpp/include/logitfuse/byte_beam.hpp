// One member's exact belief in the next byte: a beam of covering tokenisations.
//
// A text y is covered by many token sequences.  A *hypothesis* is a path of whole tokens that
// spells a prefix of y, with the row of logits behind it; the rest of y, its *pending* bytes,
// begins the path's next token.  Every infinite token sequence that spells y belongs to exactly one
// hypothesis: the one that ends before the token which holds the next byte.  So
//
//   P(y)     = sum_h P(path_h) * M_h(pending_h)           M_h(s): mass of the tokens that begin
//   with s P(y b)   = sum_h P(path_h) * M_h(pending_h b)         (longer than s once s itself is a
//   token: P(y end) = sum_{h: nothing pending} P(path_h) * P_h(end)     then a new hypothesis ends
//   there)
//
// (cover encodings: Phan et al., arXiv 2410.09303; beam summing: Vieira et al., arXiv 2412.03719.)
//
// Masses are differences of prefix sums over the sorted vocabulary, O(1) per trie node.
//
// A path that ends exactly at the end of y needs a forward pass before its part of the next byte is
// known.  It gets one at once if its share of P(y) is at least `prune`.  A smaller one *waits* for
// the next byte b: tokenizers do not cut where a longer token goes on, so if the other paths can
// spell b (with at least kSpelled times the waiting mass), the waiting ones are given up; else they
// are extended now.  So what is given up at a byte is less than `prune` per path, some other path
// can spell that byte, and most paths that end inside a word never cost a pass.  Where the others
// fail at a later byte, the beam is dead, and the text has to be read anew.
// Light paths with the last two tokens of a heavier one join it.  bench/quality.py
// shows what all this costs in bits per byte.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "logitfuse/allowed.hpp"
#include "logitfuse/byte_trie.hpp"

namespace logitfuse {

inline constexpr std::size_t kByteOutcomes = 257;  ///< 256 bytes and the end
inline constexpr std::size_t kByteEnd = 256;

struct BeamOptions {
  double prune = 0.02;     ///< share of P(y) below which a path is not extended, in (0, 1)
  std::int32_t width = 8;  ///< most hypotheses, >= 1
};

/// Waiting paths are given up where the others spell the next byte with this many times their mass.
inline constexpr double kSpelled = 0.3;

class ByteBeam {
 public:
  /// A path that ends at the end of the text and whose row is wanted: `token` behind `parent`.
  struct Wanted {
    std::int32_t id, parent, token;
  };
  /// Where a hypothesis stands in the trie, and its share of the text (all shares sum to 1).
  struct Hypothesis {
    std::int32_t id = kNone;
    std::int32_t at = ByteTrie::kRoot;
    double share = 0.0;  ///< of the path: the mass of its continuations is share * mass(...)
    bool has_row = false;
    bool waits = false;  ///< ends at the end of the text, not extended
    std::int32_t parent = kNone;
    std::int32_t token = kNone;  ///< the path's last
    std::vector<double> sums;    ///< [sorted + 1], prefix sums of the next token's probabilities
    double end = 0.0;            ///< probability of the end
  };

  /// Throws FusionError for options out of range.
  ByteBeam(std::shared_ptr<const ByteTrie> trie, BeamOptions options);

  const BeamOptions& options() const { return options_; }
  /// From now on; in (0, 1).
  void set_prune(double prune);
  const ByteTrie& trie() const { return *trie_; }

  /// A fresh text: one path, with nothing pending, whose row is wanted.  Returns its id.
  std::int32_t begin();

  /// The row of a wanted path: logits, float32 [vocab.size()], of which only the `allowed` tokens
  /// count (empty: all).  A path that is left with none ends here.  Throws FusionError for NaN,
  /// +inf or nothing but -inf, and for an id that is not wanted.
  void row(std::int32_t id, const float* logits, TokenBits allowed = {});

  /// What one member that follows canonical tokens knows without another forward pass: its row
  /// from before its last token (which may yet turn out to be longer), and the one behind it.
  /// Paths that end earlier or elsewhere are left out.  Throws FusionError: as `row`; a token that
  /// spells no bytes.
  void two_rows(const float* before, std::int32_t token, const float* after,
                TokenBits allowed_before = {}, TokenBits allowed_after = {});

  /// The text goes on with these bytes, one at a time; stops where rows are wanted: behind the byte
  /// where a path ends, or before one that only waiting paths can spell.  Returns how many bytes
  /// were taken.  Throws FusionError if rows are wanted.
  std::size_t push(std::string_view bytes);

  /// Until called again: the path that is this token behind this hypothesis is followed however
  /// little of the text it has (kNone: none).  For texts whose tokens are known beforehand.
  void expect(std::int32_t id, std::int32_t token);

  /// Whether the expected token is what this hypothesis has pending at a place of the trie.
  bool expects_end(const Hypothesis& hypothesis, std::int32_t at) const;

  /// The share of the text that has survived pruning since the last call.
  double take_kept();

  /// Wants the rows of all waiting paths.
  void wake();

  /// The share of the waiting paths.
  double waiting() const;

  /// Forgets the text and frees the memory of its rows; the beam is dead until `begin`.
  void rest();

  /// No hypothesis is left: the member cannot spell the text (or gave it no probability).
  bool dead() const { return live_.empty(); }
  std::span<const Wanted> wanted() const { return wanted_; }
  /// Ids of hypotheses that were given up since the last call of `forget_dropped`.
  std::span<const std::int32_t> dropped() const { return dropped_; }
  void forget_dropped() { dropped_.clear(); }
  /// The id of the most probable path.
  std::int32_t best() const;

  /// Log-probabilities (nats) of the next byte and the end, [kByteOutcomes]; all -inf where nothing
  /// is allowed.  The waiting paths' share goes in equal parts to what the others do not spell.
  /// Throws FusionError if rows are wanted or the beam is dead.
  void next(std::span<float> out) const;

  std::span<const Hypothesis> hypotheses() const { return live_; }

  /// Mass of the tokens that begin with a trie node's string (the whole distribution at the root,
  /// the end included), and of those that spell exactly that string.
  double mass(const Hypothesis& hypothesis, std::int32_t at) const;
  double exact_mass(const Hypothesis& hypothesis, std::int32_t at) const;
  double longer_mass(const Hypothesis& hypothesis, std::int32_t at) const;

 private:
  struct Branch {
    std::size_t from;  // in live_
    double mass;
    bool ends;
    std::int32_t token;  // of a path that ends
  };

  bool expected(const Branch& branch) const;
  bool resolve(std::uint8_t byte);
  void branch_out(std::uint8_t byte);
  void merge();
  void step(std::uint8_t byte);
  void drop(Hypothesis& hypothesis);
  bool exponentiate(const float* logits);
  std::vector<double> spare_sums();

  std::shared_ptr<const ByteTrie> trie_;
  BeamOptions options_;
  std::vector<Hypothesis> live_, next_;
  std::vector<std::int32_t> held_;  // ended, but a waiting path may still fork from them
  std::vector<Branch> branches_;
  double total_ = 0.0;  // mass of all branches
  double kept_ = 1.0;
  std::int32_t expected_id_ = kNone, expected_token_ = kNone;
  std::vector<Wanted> wanted_;
  std::vector<std::int32_t> dropped_;
  std::vector<std::vector<double>> spare_;  // prefix sums to use again
  std::vector<float> scratch_, kept_logits_;
  std::int32_t last_id_ = kNone;
};

}  // namespace logitfuse
