// The inner loops for one set of instructions.  The build compiles this file several times: TTAC_TABLE names the
// result, TTAC_INSTRUCTIONS describes it.
#include "adam_loops.h"
#include "bytes_loops.h"
#include "depthwise_loops.h"
#include "dispatch.h"
#include "layer_loops.h"
#include "norm_loops.h"
#include "pool_loops.h"
#include "rows_loops.h"
#include "sparse_loops.h"
#include "weight_loops.h"

namespace ttac {

// A constant expression: no code of this file may run before the choice.
constexpr Instructions TTAC_TABLE = {TTAC_INSTRUCTIONS, norm_table(), pool_table(), depthwise_table(),
                                       sparse_table(), layer_table(), weight_table(), rows_table(),
                                       adam_table(), bytes_table()};

}  // namespace ttac
