// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package cocoa

// #include <stdlib.h>
import "C"

import (
	"fmt"
	"sync"
	"unsafe"

	"github.com/progrium/darwinkit/objc"
)

// Object is an Objective-C object or class, or nil.
type Object = objc.Object

// Arguments of messages are Object, string, []byte, uint64 for NSUInteger, NSInteger and BOOL, and float64. darwinkit
// 0.5.0 has faults in what else it offers: results narrower than a word, empty collections, blocks, closures.
// A message to nil does nothing and gives zero. All of these functions need a Pool around them, since whatever they make
// is autoreleased. A string ends at its first zero byte.

// Pool runs do and then releases what was autoreleased in it.
func Pool(do func()) { objc.WithAutoreleasePool(do) }

// Class gives a class, nil if there is none of this name.
func Class(name string) Object { return objc.ObjectFrom(objc.GetClass(name).Ptr()) }

// Send sends a message whose result is void or of no interest.
func Send(to Object, selector string, args ...any) {
	if !to.IsNil() {
		objc.Call[objc.Void](to, objc.Sel(selector), args...)
	}
}

// Get gives the object that a message answers.
func Get(from Object, selector string, args ...any) Object {
	if from.IsNil() {
		return Object{}
	}
	return objc.ObjectFrom(objc.Call[unsafe.Pointer](from, objc.Sel(selector), args...))
}

// Number gives the NSUInteger or NSInteger that a message answers.
func Number(from Object, selector string, args ...any) uint64 {
	if from.IsNil() {
		return 0
	}
	return objc.Call[uint64](from, objc.Sel(selector), args...)
}

// Is gives the BOOL that a message answers. Of the word that libffi writes, only a byte means anything.
func Is(from Object, selector string, args ...any) bool {
	return Number(from, selector, args...)&0xff != 0
}

// Text gives the string that a message answers, empty for nil.
func Text(from Object, selector string, args ...any) string {
	return objc.ToGoString(Get(from, selector, args...).Ptr())
}

// Bytes copies an NSData.
func Bytes(data Object) []byte { return objc.ToGoBytes(data.Ptr()) }

// New makes an object that the caller owns, by one of its class's init messages; nil when there is no such class.
func New(class, init string, args ...any) Object {
	return Get(Get(Class(class), "alloc"), init, args...)
}

// Error is an NSError.
type Error struct {
	Domain string
	Code   int64
	Text   string // localizedDescription
}

func (e *Error) Error() string { return fmt.Sprintf("%s (%s %d)", e.Text, e.Domain, e.Code) }

// ErrorFrom reads an NSError, nil for nil.
func ErrorFrom(o Object) error {
	if o.IsNil() {
		return nil
	}
	return &Error{Domain: Text(o, "domain"), Code: int64(Number(o, "code")), Text: Text(o, "localizedDescription")}
}

// Try sends a message that answers whether it succeeded and takes the address of an NSError as its last argument, which
// Try adds.
func Try(to Object, selector string, args ...any) error {
	if to.IsNil() {
		return &Error{Text: selector + " to nil"}
	}
	// The address is kept by C, so it is of C's memory.
	failure := (*unsafe.Pointer)(C.calloc(1, C.size_t(unsafe.Sizeof(unsafe.Pointer(nil)))))
	defer C.free(unsafe.Pointer(failure))
	if Is(to, selector, append(args, unsafe.Pointer(failure))...) {
		return nil
	}
	if err := ErrorFrom(objc.ObjectFrom(*failure)); err != nil {
		return err
	}
	return &Error{Text: selector + " failed and did not say why"}
}

// Method is one of a class that Define makes.
type Method struct {
	Selector string
	Function unsafe.Pointer // in C: id self, SEL, and the arguments
	Types    string         // as @encode has them, beginning with the result's
}

var defining sync.Mutex

// Define makes a subclass of NSObject, once.
func Define(name string, methods []Method) {
	defining.Lock()
	defer defining.Unlock()
	if !Class(name).IsNil() {
		return
	}
	class := objc.AllocateClass(objc.GetClass("NSObject"), name, 0)
	for _, m := range methods {
		class.AddMethod(objc.Sel(m.Selector), objc.IMPFrom(m.Function), m.Types)
	}
	objc.RegisterClass(class)
}
