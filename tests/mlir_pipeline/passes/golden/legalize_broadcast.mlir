// PASS: legalize-dynamism
// CHECK: #[[ONES:.*]] = affine_map<(d0, d1) -> (d0, 0)>
// CHECK-LABEL: @f
// CHECK: %[[N:.*]] = tensor.dim %arg0
// CHECK-NOT: get_dimension_size
// CHECK: tensor.empty(%[[N]]) : tensor<?x8xf32>
// CHECK: linalg.generic {indexing_maps = [#[[ONES]]
// CHECK-NOT: stablehlo
func.func @f(%x: tensor<?x1xf32>) -> tensor<?x8xf32> {
  %n = stablehlo.get_dimension_size %x, dim = 0 : (tensor<?x1xf32>) -> tensor<i32>
  %c = stablehlo.constant dense<8> : tensor<1xi32>
  %v = stablehlo.reshape %n : (tensor<i32>) -> tensor<1xi32>
  %s = stablehlo.concatenate %v, %c, dim = 0 : (tensor<1xi32>, tensor<1xi32>) -> tensor<2xi32>
  %0 = stablehlo.dynamic_broadcast_in_dim %x, %s, dims = [0, 1] : (tensor<?x1xf32>, tensor<2xi32>) -> tensor<?x8xf32>
  return %0 : tensor<?x8xf32>
}
