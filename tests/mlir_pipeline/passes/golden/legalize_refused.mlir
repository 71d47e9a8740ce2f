// PASS: legalize-dynamism
// What cannot be lowered stays and says why; what follows from it says nothing.
// CHECK-LABEL: @f
// CHECK: stablehlo.dynamic_pad
// CHECK-SAME: jaxrank.refused = "a padding that depends on the number of candidates"
// CHECK: stablehlo.dynamic_reshape
// CHECK-NOT: jaxrank.refused
func.func @f(%s: tensor<2xi32>, %x: tensor<?xf32>) -> tensor<?x2xf32> {
  %z = stablehlo.constant dense<0.0> : tensor<f32>
  %zero = stablehlo.constant dense<0> : tensor<1xi32>
  %n = stablehlo.get_dimension_size %x, dim = 0 : (tensor<?xf32>) -> tensor<i32>
  %v = stablehlo.reshape %n : (tensor<i32>) -> tensor<1xi32>
  %0 = stablehlo.dynamic_pad %x, %z, %v, %zero, %zero : (tensor<?xf32>, tensor<f32>, tensor<1xi32>, tensor<1xi32>, tensor<1xi32>) -> tensor<?xf32>
  %1 = stablehlo.dynamic_reshape %0, %s : (tensor<?xf32>, tensor<2xi32>) -> tensor<?x2xf32>
  return %1 : tensor<?x2xf32>
}
