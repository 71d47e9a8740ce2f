// PASS: legalize-dynamism
// CHECK-LABEL: @f
// CHECK: tensor.collapse_shape %arg0
// CHECK-SAME{LITERAL}: [[0, 1]] : tensor<?x3xf32> into tensor<?xf32>
// CHECK-NOT: stablehlo
func.func @f(%x: tensor<?x3xf32>) -> tensor<?xf32> {
  %n = stablehlo.get_dimension_size %x, dim = 0 : (tensor<?x3xf32>) -> tensor<i32>
  %c = stablehlo.constant dense<3> : tensor<i32>
  %m = stablehlo.multiply %n, %c : tensor<i32>
  %s = stablehlo.reshape %m : (tensor<i32>) -> tensor<1xi32>
  %0 = stablehlo.dynamic_reshape %x, %s : (tensor<?x3xf32>, tensor<1xi32>) -> tensor<?xf32>
  return %0 : tensor<?xf32>
}
