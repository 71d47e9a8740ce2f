// PASS: legalize-dynamism
// CHECK-LABEL: @f
// CHECK: tensor.collapse_shape
// CHECK-SAME: tensor<?x4x8xf32> into tensor<?x8xf32>
// CHECK: linalg.fill
// CHECK: linalg.matmul
// CHECK-SAME: tensor<?x8xf32>, tensor<8x16xf32>
// CHECK: tensor.expand_shape
// CHECK-SAME: tensor<?x16xf32> into tensor<?x4x16xf32>
// CHECK-NOT: stablehlo
func.func @f(%w: tensor<8x16xf32>, %x: tensor<?x4x8xf32>) -> tensor<?x4x16xf32> {
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [2] x [0] : (tensor<?x4x8xf32>, tensor<8x16xf32>) -> tensor<?x4x16xf32>
  return %0 : tensor<?x4x16xf32>
}
