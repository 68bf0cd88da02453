import java.util.stream.LongStream;

/** Prints the primes below LIMIT (default: 50), one per line. Usage: Primes [LIMIT] */
public class Primes {
    static boolean isPrime(long number) {
        return LongStream.iterate(2, divisor -> divisor * divisor <= number, divisor -> divisor + 1)
                .noneMatch(divisor -> number % divisor == 0);
    }

    public static void main(String[] args) {
        long limit = args.length > 0 ? Long.parseLong(args[0]) : 50;
        LongStream.range(2, limit).filter(Primes::isPrime).forEach(System.out::println);
    }
}
