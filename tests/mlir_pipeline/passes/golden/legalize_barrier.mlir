// PASS: legalize-dynamism
// CHECK: %[[N:.*]] = tensor.dim
// CHECK: %[[B:.*]] = util.optimization_barrier %arg0
// CHECK: flow.tensor.tie_shape %[[B]] : tensor<?x4xf32>{%[[N]]}
func.func @f(%x: tensor<?x4xf32>) -> tensor<?x4xf32> {
  %0 = stablehlo.optimization_barrier %x : tensor<?x4xf32>
  return %0 : tensor<?x4xf32>
}
