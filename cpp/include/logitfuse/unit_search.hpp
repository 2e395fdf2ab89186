// From the members' beliefs in the next byte to the pooled probabilities of whole *units*.
//
// A unit is the string from the present text to the next place where some member needs a forward
// pass (one of its paths ends there).  Units are a prefix-free set, so they exclude each other, and
// their pooled probabilities sum to 1; they are about as long as tokens.  Sampling parameters act
// on units.  The most probable ones are found best first in the tree of bytes, without listing the
// rest: a string is never more probable than its prefix.
//
// Where paths wait (see byte_beam.hpp), what the others do not spell is one more unit: the text
// goes on behind the waiting paths, with none of the bytes that `spelled` names.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "logitfuse/alignment.hpp"
#include "logitfuse/byte_beam.hpp"
#include "logitfuse/byte_gate.hpp"
#include "logitfuse/pool.hpp"

namespace logitfuse {

/// What the weights of the linear pool are weights of.
enum class PoolUnit : std::uint8_t {
  byte,  ///< every byte: p(b | s) = sum_i w_i p_i(b | s), the weights stay as they are
  unit,  ///< whole units: p(s) = sum_i w_i p_i(s); inside a unit the weights follow the evidence
};

class UnitSearch {
 public:
  /// How the members' beliefs in the next byte become one.  A byte (or the end) that a member rules
  /// out counts as exp(floor) in the pools that would take it for a veto.
  struct Rule {
    PoolOptions pool;
    PoolUnit per = PoolUnit::byte;         ///< unit: linear pools only
    std::shared_ptr<const ByteGate> gate;  ///< gives the weights of a linear pool; null: none
  };

  /// `alignment` names units that are symbols; other units get ids from its size on.
  /// Throws FusionError: a rule that cannot be.
  UnitSearch(std::shared_ptr<const Alignment> alignment,
             std::vector<std::shared_ptr<const ByteBeam>> beams, Rule rule);

  /// What is known of the text.
  struct Text {
    std::string pending;                 ///< its unfinished UTF-8 character, at most 3 bytes
    bool may_end = true;                 ///< whether the end is a unit
    std::vector<float> history;          ///< of the members, for the gate (see `ByteHistory`)
    std::vector<std::int32_t> excluded;  ///< bytes (or kByteEnd) that do not follow: `spelled`
  };

  /// Starts a step.  Members of weight 0 are absent; the others must be alive and want no rows.
  /// Throws FusionError for bad weights.
  void read(std::span<const double> weights, Text text);

  /// The `n` most probable units, and the `forced` symbols that are units too.  More can be asked
  /// for later, without searching again.
  const Fused& candidates(std::int32_t n, std::span<const std::int32_t> forced);

  /// The unit at this place, 0 <= place < 1, of all units laid out one behind the other, each as
  /// long as it is probable: a draw from the pool, without listing more than one path.  It is
  /// listed.  Returns its symbol.
  std::int32_t draw(double place);

  /// The unit that a text begins with (an empty text: the end), or the whole text if it is only the
  /// beginning of units; where only waiting paths may spell what follows, the unit that stands for
  /// them.  It is listed.  Returns its symbol, or kNone if no member can spell the text.
  std::int32_t along(std::string_view text);

  /// Forgets the units that are no symbols: their ids are good for one text.
  void forget();

  /// The bytes of a symbol or of another unit.
  std::string_view unit(std::int32_t symbol) const;

  /// Of a listed unit that stands for the waiting paths: the bytes that do not follow it.  Its
  /// string may be empty; all waiting paths must be woken before the next step.
  std::span<const std::int32_t> spelled(std::int32_t symbol) const;

 private:
  struct Place {  // where one hypothesis of one member stands
    std::int32_t member, hypothesis, at;
  };
  struct Node {
    std::int32_t parent;
    std::int32_t first_place, n_places;    // once settled
    std::int32_t first_child, n_children;  // after expansion
    double probability;                    // pooled
    std::uint16_t byte;                    // or kByteEnd, or kWaiting
    bool settled, ends, expanded, listed;
  };
  struct Entry {
    double probability;
    std::int32_t node;
    bool operator<(const Entry& other) const {
      return probability != other.probability ? probability < other.probability : node > other.node;
    }
  };

  static constexpr std::size_t kWaiting = kByteOutcomes;  // the outcome behind the waiting paths
  static constexpr std::size_t kOutcomes = kByteOutcomes + 1;

  using Outcomes = std::array<bool, kByteOutcomes>;

  const Outcomes& may_follow(std::string_view tail);
  Outcomes allowed(std::int32_t at);
  void ask(std::int32_t at, const Outcomes& allowed);
  double waiting(const Node& node, std::int32_t member) const;
  void mix(std::int32_t at);
  void ask_gate(std::span<double> weights);
  void pool();
  void gather_unspelled();
  void add_child(std::int32_t at, std::size_t outcome);
  void settle(std::int32_t at);
  void expand(std::int32_t at);
  bool needs_row(const Node& node) const;
  bool is_known(std::int32_t at) const;
  void take_best();
  void list(std::int32_t at);
  const Fused& report();
  std::int32_t child(std::int32_t at, std::size_t outcome);
  void force(std::int32_t symbol);
  std::string spell(std::int32_t at) const;
  std::int32_t symbol(std::int32_t at);

  std::shared_ptr<const Alignment> alignment_;
  std::vector<std::shared_ptr<const ByteBeam>> beams_;
  Rule rule_;
  std::vector<double> weights_;
  Text text_;
  std::vector<Node> nodes_;
  std::vector<Place> places_;
  std::vector<double> masses_;  // [nodes, members]: each member's probability of the string
  std::vector<std::vector<double>> conditional_;  // scratch: [members][kOutcomes]
  std::vector<double> outcome_;                   // scratch: pooled, [kOutcomes]
  std::vector<float> logs_, pooled_;              // scratch: [members, kOutcomes], [kOutcomes]
  std::priority_queue<Entry> heap_;
  std::vector<std::int32_t> listed_;
  std::int32_t n_best_ = 0;  // of the listed ones; the others were forced or drawn
  std::map<std::string, std::int32_t, std::less<>> named_;  // units that are no symbols
  std::vector<std::string> names_;
  std::map<std::int32_t, std::vector<std::int32_t>> spelled_;  // of the listed waiting units
  std::map<std::string, Outcomes, std::less<>> may_follow_;    // by unfinished character
  Fused fused_;
};

}  // namespace logitfuse
