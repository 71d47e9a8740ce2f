// PASS: drop-shape-assertions
// CHECK-LABEL: @f
// CHECK-NOT: shape_assertion
// CHECK: stablehlo.custom_call @other
func.func @f(%x: tensor<?xf32>, %ok: tensor<i1>) -> tensor<?xf32> {
  stablehlo.custom_call @shape_assertion(%ok) {has_side_effect = true} : (tensor<i1>) -> ()
  %0 = stablehlo.custom_call @other(%x) : (tensor<?xf32>) -> tensor<?xf32>
  return %0 : tensor<?xf32>
}
